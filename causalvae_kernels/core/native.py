"""Lazy load of the compiled CPU module, and which of its instruction sets is used.

Importing this file loads nothing native. Whether the module serves is a sentence (`why_no_cpu`), and the
same sentence is raised by whoever needs it all the same.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

from torch import Tensor

from . import env
from .errors import BackendUnavailable

MODULE = "causalvae_kernels._C_cpu"

TensorArgument = tuple[int, tuple[int, ...], tuple[int, ...]]


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    """Return the module, or the sentence that says why there is none."""
    try:
        return importlib.import_module(MODULE), None
    except ModuleNotFoundError:
        return None, (
            "the native CPU module was not built: install the package again with a C++17 compiler, "
            f"and without {env.SKIP_BUILD.name}"
        )
    except ImportError as error:
        return None, f"the native CPU module cannot be loaded ({error}): install the package again"


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
    """Return the native CPU module, loading it on the first call.

    Raises:
        BackendUnavailable: It cannot be used; the message is `why_no_cpu()`.
    """
    reason = why_no_cpu()
    module, _ = _load()
    if module is None or reason is not None:
        raise BackendUnavailable(reason)
    return module


def cpu_isa() -> str:
    """Return the instruction set to use: the one forced by the environment, else the best one here.

    Raises:
        BackendUnavailable: The native module cannot be used.
    """
    best = cpu_module().supported_isas()[0]
    return env.CPU_ISA.get() or best


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


def describe(tensor: Tensor) -> TensorArgument:
    """Return (address, sizes, strides in elements): a tensor as the native modules take it."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
