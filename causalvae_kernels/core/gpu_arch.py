"""The table of GPU architectures: what a kernel may use on each. Every choice by architecture reads it."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import torch

KIB = 1024


@dataclass(frozen=True)
class GpuArch:
    """A row of the table.

    Attributes:
        capability: Ten times the major number and the minor one: 90 for compute capability 9.0.
        code: The code that makes use of all of it, as nvcc names it. That of "90a" runs on 9.0 alone.
        shared_memory: Bytes that a block may have.
        tma: Tensors can be loaded through descriptors.
        cuda_conv: The folder of csrc/cuda with the convolution for `code`, or None.
        writes_windows: That convolution stores through strides of its own, around a halo; else in rows.
    """

    capability: int
    code: str
    shared_memory: int
    tma: bool
    cuda_conv: str | None = None
    writes_windows: bool = False


# build_cuda.py, which runs without this package, compiles the same folders for the same code.
ARCHS = (
    GpuArch(80, "80", 163 * KIB, tma=False, cuda_conv="sm80"),
    GpuArch(86, "86", 99 * KIB, tma=False, cuda_conv="sm80"),
    GpuArch(89, "89", 99 * KIB, tma=False, cuda_conv="sm80"),
    GpuArch(90, "90a", 227 * KIB, tma=True, cuda_conv="sm90", writes_windows=True),
    GpuArch(100, "100", 227 * KIB, tma=True),
    GpuArch(120, "120", 99 * KIB, tma=True),
)
OLDEST = ARCHS[0]


def capability_of(device: torch.device) -> int:
    """Return 90 for compute capability 9.0; a CPU, where Triton's kernels are interpreted, counts as 9.0."""
    major, minor = (9, 0) if device.type == "cpu" else torch.cuda.get_device_capability(device)
    return 10 * major + minor


def arch_of(capability: int) -> GpuArch:
    """Return the newest row that is not newer than a capability; below the oldest one, that."""
    return next((a for a in reversed(ARCHS) if a.capability <= capability), OLDEST)


def arch_of_code(code: str) -> GpuArch | None:
    """Return the row whose kernels `code` may hold, or None: "86" serves "87", and "90a" not "90"."""
    number, _ = _parse(code)
    row = arch_of(number)
    of_generation = number // 10 == row.capability // 10
    return row if code == row.code or of_generation and row.code.isdecimal() and code.isdecimal() else None


def code_for(capability: int) -> str:
    """Return what nvcc must compile for a GPU: "90a" for 90, "75" for 75."""
    return next((a.code for a in ARCHS if a.capability == capability), str(capability))


@functools.cache
def newest_code(codes: tuple[str, ...], capability: int) -> str | None:
    """Return which of these a GPU runs best: that of its generation, "a" where it is made for it; or None."""
    found = []
    for code in codes:
        number, letter = _parse(code)
        later = number // 10 == capability // 10 and number < capability and letter != "a"
        if number == capability or later:
            found.append((number, letter, code))
    return max(found)[-1] if found else None


def dots(capability: int) -> str:
    """Return "9.0" for 90."""
    return f"{capability // 10}.{capability % 10}"


def _parse(code: str) -> tuple[int, str]:
    number, letter = re.fullmatch(r"(\d+)([a-z]?)", code).groups()
    return int(number), letter
