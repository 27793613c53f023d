"""Lazy load of the compiled modules, and which of their instruction sets or GPU architectures is used.

Importing this file loads nothing native. `why_no_cpu` and `why_no_cuda` return why a module cannot be
used, as a sentence, and the same sentence is raised when it is requested.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import dry_run, env, gpu_arch
from .dry_run import address
from .errors import BackendUnavailable

CPU = "causalvae_kernels._C_cpu"
CUDA = "causalvae_kernels._C_cuda"

_WORDS = {CPU: ("native CPU module", "with a C++17 compiler"), CUDA: ("CUDA module", "with nvcc on the path")}

TensorArgument = tuple[int, tuple[int, ...], tuple[int, ...]]


@functools.cache
def _load(name: str = CPU) -> tuple[ModuleType | None, str | None]:
    """Return the module, or the sentence that says why there is none."""
    words, needs = _WORDS[name]
    try:
        return importlib.import_module(name), None
    except ModuleNotFoundError:
        return None, (
            f"the {words} was not built: install the package again {needs}, and without {env.SKIP_BUILD.name}"
        )
    except ImportError as error:
        return None, f"the {words} cannot be loaded ({error}): install the package again"


def why_no_cpu() -> str | None:
    """Return why the native CPU module cannot be used, as a sentence, or None if it can.

    Raises:
        InvalidInput: `CAUSALVAE_KERNELS_CPU_ISA` holds no instruction set's name.
    """
    module, reason = _load()
    if module is None:
        return reason
    forced = env.CPU_ISA.get()
    supported = module.supported_isas()
    if forced is None or forced in supported:
        return None
    built = forced in module.compiled_isas()
    return (
        f"{env.CPU_ISA.name} asks for {forced}, which {'this processor' if built else 'this build'} has not: "
        f"use one of {', '.join(supported)}"
    )


def cpu_module() -> ModuleType:
    """Return the native CPU module, loading it on the first call; in a dry run one that computes nothing.

    Raises:
        BackendUnavailable: It cannot be used; the message is `why_no_cpu()`.
    """
    reason = why_no_cpu()
    module, _ = _load()
    if module is None or reason is not None:
        raise BackendUnavailable(reason)
    return module if dry_run.current() is None else _WithoutKernels(module)


class _WithoutKernels:
    """The module for tensors without data: what it knows of sizes, and kernels that do nothing."""

    def __init__(self, module: ModuleType) -> None:
        for name in (
            "supported_isas",
            "compiled_isas",
            "winograd_packed_floats",
            "has_tiles",
            "tiles_packed_bytes",
        ):
            setattr(self, name, getattr(module, name))

    def fingerprint(self, *_: Any) -> int:
        return 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _do_nothing


def _do_nothing(*_: Any) -> None:
    pass


def cpu_isa() -> str:
    """Return the instruction set to use: the one forced by the environment, else the best one here.

    Raises:
        BackendUnavailable: The native module cannot be used.
    """
    best = cpu_module().supported_isas()[0]
    return env.CPU_ISA.get() or best


def cpu_tiles() -> str:
    """Return which matrix tiles the convolutions in bfloat16 use: "amx", or "" for none.

    An instruction set that the environment asks for is used alone.

    Raises:
        BackendUnavailable: The native module cannot be used.
    """
    return "amx" if env.CPU_ISA.get() is None and cpu_module().has_tiles() else ""


# What oneDNN has to be held to for an instruction set that is not the processor's best.
_ONEDNN_NAMES = {"avx2": "AVX2", "portable": "SSE41"}
_ONEDNN = "ONEDNN_MAX_CPU_ISA"


def why_incomparable(isa: str) -> str | None:
    """Return why times of our kernels and of the framework's would not be of one instruction set, or None.

    Raises:
        BackendUnavailable: The native module cannot be used.
    """
    supported = cpu_module().supported_isas()
    if isa not in supported:
        return f"this processor has no {isa}"
    best = supported[0]
    held = (os.environ.get(_ONEDNN) or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT").upper()
    if held == _ONEDNN_NAMES.get(isa) or (isa == best and held in ("DEFAULT", "ALL")):
        return None
    if isa == best:
        return (
            f"{_ONEDNN} holds the framework to {held}, and our kernels use {isa}: unset it, or choose "
            f"another instruction set with {env.CPU_ISA.name}"
        )
    return (
        f"{env.CPU_ISA.name} asks for {isa} on a processor with {best}, which the framework would use: set "
        f"{_ONEDNN}={_ONEDNN_NAMES[isa]} as well"
    )


def why_no_cuda(device: torch.device) -> str | None:
    """Return why the CUDA module cannot run on tensors of this device, as a sentence, or None if it can."""
    module, reason = _load(CUDA)
    if module is None:
        return reason
    if dry_run.current() is not None:
        return dry_run.why_not_on_gpu()
    if device.type != "cuda" or torch.version.cuda is None:
        return f"the tensor is on {device}, the kernel runs on an NVIDIA GPU"
    if cuda_arch(device) is not None:
        return None
    capability, archs = gpu_arch.capability_of(device), module.compiled_archs()
    return (
        f"the GPU has compute capability {gpu_arch.dots(capability)}, and the CUDA module holds code for "
        f"{', '.join(archs)}: install the package again with {env.CUDA_ARCH_LIST.name}="
        f"'{';'.join([*archs, gpu_arch.code_for(capability)])}'"
    )


def cuda_module() -> ModuleType:
    """Return the CUDA module, loading it on the first call; it loads without a GPU.

    Raises:
        BackendUnavailable: It was not built or cannot be loaded.
    """
    module, reason = _load(CUDA)
    if module is None:
        raise BackendUnavailable(reason)
    return module


def cuda_arch(device: torch.device) -> str | None:
    """Return which of the CUDA module's architectures this GPU runs, the newest one, or None.

    Raises:
        BackendUnavailable: The CUDA module was not built or cannot be loaded.
    """
    return gpu_arch.newest_code(tuple(cuda_module().compiled_archs()), gpu_arch.capability_of(device))


def current_stream(device: torch.device) -> tuple[int, int]:
    """Return what a launch of the CUDA module needs: the device's index and torch's current stream on it."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def describe(tensor: Tensor) -> TensorArgument:
    """Return (address, sizes, strides in elements): a tensor as the native modules take it."""
    return address(tensor), tuple(tensor.shape), tensor.stride()
