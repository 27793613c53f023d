"""Compiling Triton kernels for GPUs that are not there: what the machine code holds, what a launch compiles.

`compile_kernel` compiles one signature; `record_launches` runs a launch function with a target that only
pretends and returns what Triton was about to compile, so that a test covers what users get and nothing else.
Works with Triton 3.6 to 3.9. Kernels that are interpreted cannot be compiled: a module of tests that uses
this sets `pytestmark = needs_compiler` and imports its kernels inside functions.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from causalvae_kernels.core.gpu_arch import ARCHS, arch_of
from causalvae_kernels.core.triton_runtime import interpreting

CAPABILITIES = tuple(arch.capability for arch in ARCHS)

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_LOCAL_STORE = re.compile(r"\bSTL((?:\.\w+)*)\s")


def _why_no_compiler() -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed"
    return "TRITON_INTERPRET=1: kernels are interpreted, not compiled" if interpreting() else None


needs_compiler = pytest.mark.skipif(_why_no_compiler() is not None, reason=_why_no_compiler() or "")


@dataclass(frozen=True)
class Compiled:
    """What came out of a compilation.

    Attributes:
        ptx: The PTX, as text.
        registers: Per thread.
        stack_bytes: Local memory per thread: stack frame and local arrays, spilled registers included.
        spill_bytes: Bytes that the machine code's stores to local memory write, each counted once as it
            stands there (as ptxas counts spill stores).
        shared_bytes: Shared memory per block, that of the launch and the static one together.
        cubin: The machine code.
    """

    ptx: str = field(repr=False)
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    cubin: bytes = field(repr=False)

    @cached_property
    def sass(self) -> str:
        """The machine code, disassembled."""
        return disassemble(self.cubin)

    def why_not_fit(self, capability: int) -> str | None:
        """Return a sentence if registers spill or the shared memory of a block does not suffice."""
        if self.spill_bytes or self.stack_bytes:
            return f"sm_{capability}: {self.spill_bytes} bytes spilled, {self.stack_bytes} bytes of stack"
        limit = arch_of(capability).shared_memory
        if self.shared_bytes > limit:
            return f"sm_{capability}: {self.shared_bytes} bytes of shared memory, a block has {limit}"
        return None


@dataclass(frozen=True)
class Launch:
    """What Triton compiles for one call of a kernel.

    Attributes:
        kernel: The kernel.
        key: What Triton looks the compiled kernel up by; equal keys mean one compilation.
        signature: Type of each argument, by name.
        constants: Value of each constant, by name.
        divisible: Names of the arguments known to be divisible by 16.
        num_warps: Warps per block.
        num_stages: Stages of software pipelining.
        enable_fp_fusion: Whether multiplications and additions are contracted.
    """

    kernel: Any
    key: str
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    num_warps: int
    num_stages: int
    enable_fp_fusion: bool

    def compile(self, capability: int) -> Compiled:
        """Compile it for a GPU of this compute capability."""
        return compile_kernel(
            self.kernel,
            self.signature,
            self.constants,
            capability,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            divisible=self.divisible,
            enable_fp_fusion=self.enable_fp_fusion,
        )


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    *,
    num_warps: int,
    num_stages: int,
    divisible: Sequence[str] = (),
    enable_fp_fusion: bool = True,
) -> Compiled:
    """Compile a kernel to machine code; needs no GPU.

    Args:
        kernel: A function under `@triton.jit`.
        signature: Type of each argument ("*bf16", "i32", ...); those in `constants` may be left out.
        constants: Value of each `tl.constexpr` argument, and of others that are to be constants.
        capability: Compute capability, as 90 for sm_90.
        num_warps: Warps per block.
        num_stages: Stages of software pipelining.
        divisible: Names of arguments (pointers, sizes) that are divisible by 16.
        enable_fp_fusion: Contract multiplications and additions; always given, because the default changes
            between Triton's versions.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    given = {*signature, *constants}
    if given != set(names) or not set(divisible) <= set(names):
        raise ValueError(
            f"{kernel.__name__}: got arguments {sorted(given)}, divisible {sorted(divisible)}; expected each "
            f"of {names} once, as a type or as a constant"
        )
    types = {name: "constexpr" if name in constants else signature[name] for name in names}
    compiled = triton.compile(
        ASTSource(
            kernel,
            types,
            dict(constants),
            {(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": enable_fp_fusion},
    )
    cubin = compiled.asm["cubin"]
    registers, stack, static_shared, local = _resources(cubin)
    return Compiled(
        ptx=compiled.asm["ptx"],
        registers=registers,
        stack_bytes=stack + local,
        spill_bytes=_spilled(disassemble(cubin)) if stack + local else 0,
        shared_bytes=compiled.metadata.shared + static_shared,
        cubin=cubin,
    )


def record_launches(capability: int, call: Callable[[], object]) -> list[Launch]:
    """Run `call` and return, in order, what each launch of a Triton kernel in it would compile.

    Triton believes in a GPU of this compute capability; its hook before compiling takes the launch away, so
    nothing is compiled or run, and tensors may lie on the CPU (only their addresses are looked at). The
    keys are Triton's own: launches of one kernel with equal keys share a compilation.
    """
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    found: list[Launch] = []

    def take(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        kernel = fn.jit_function
        constants = {kernel.arg_names[path[0]]: value for path, value in compile["constants"].items()}
        (attributes,) = compile["configs"]
        found.append(
            Launch(
                kernel=kernel,
                key=f"{kernel.__name__}: {key}",
                signature={n: t for n, t in compile["signature"].items() if n not in constants},
                constants=constants,
                divisible=tuple(kernel.arg_names[path[0]] for path, value in attributes.items() if value),
                num_warps=compile["num_warps"],
                num_stages=compile["num_stages"],
                enable_fp_fusion=compile["enable_fp_fusion"],
            )
        )
        return True

    target = GPUTarget("cuda", capability, 32)
    # A device number of its own: kernels are remembered by device, and those of a real one stay untouched.
    pretended = mock.Mock(spec=["get_current_target", "get_current_device", "get_current_stream"])
    pretended.get_current_target.return_value = target
    pretended.get_current_device.return_value = 1000 + capability
    pretended.get_current_stream.return_value = 0
    with mock.patch.object(driver, "_active", pretended), knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = take
        call()
    return found


def disassemble(cubin: bytes) -> str:
    """Return machine code as text, by the disassembler that Triton's package carries."""
    from triton import knobs

    return _run_on(cubin, knobs.nvidia.nvdisasm.path, "-c")


def _resources(cubin: bytes) -> tuple[int, int, int, int]:
    """Return registers, stack, static shared memory and local memory of the only kernel in it."""
    from triton import knobs

    text = _run_on(cubin, knobs.nvidia.cuobjdump.path, "--dump-resource-usage")
    (found,) = _RESOURCES.findall(text)
    return tuple(int(n) for n in found)  # type: ignore[return-value]


def _spilled(sass: str) -> int:
    widths = (re.search(r"\d+", modifiers) for modifiers in _LOCAL_STORE.findall(sass))
    return sum(int(width[0]) // 8 if width else 4 for width in widths)


def _run_on(cubin: bytes, *command: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}: {done.stderr}")
    return done.stdout
