"""Whether Triton's kernels can run a call; importing this file imports no Triton.

A kernel lives in a file that imports Triton at its top; the backend imports that file at the first call.
With `TRITON_INTERPRET=1` Triton runs kernels on the CPU, slowly: for tests of their numbers.
"""

from __future__ import annotations

import functools
import os
import re
from importlib import metadata

import torch

from . import dry_run, gpu_arch

OLDEST = (3, 6)


def interpreting() -> bool:
    """Tell whether Triton interprets its kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def why_no_triton(device: torch.device) -> str | None:
    """Return why no Triton kernel can run on tensors of this device, as a sentence, or None if it can."""
    missing = _why_not_installed() or dry_run.why_not_on_gpu()
    if missing is not None:
        return missing
    if interpreting():
        if device.type == "cpu":
            return None
        return (
            f"the tensor is on {device}, and TRITON_INTERPRET=1 has Triton interpret its kernels on the CPU"
        )
    if device.type != "cuda" or torch.version.cuda is None:
        return f"the tensor is on {device}, the kernel runs on an NVIDIA GPU"
    capability, least = gpu_arch.capability_of(device), gpu_arch.OLDEST.capability
    if capability < least:
        return (
            f"the GPU has compute capability {gpu_arch.dots(capability)}, the kernel needs "
            f"{gpu_arch.dots(least)}"
        )
    return None


@functools.cache
def _why_not_installed() -> str | None:
    try:
        text = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return f"Triton is not installed: pip install 'triton>={_dots(OLDEST)}'"
    version = tuple(int(part) for part in re.findall(r"\d+", text)[:2])
    if version < OLDEST:
        return f"Triton {text} is installed, the kernel needs {_dots(OLDEST)} or newer"
    return None


def _dots(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
