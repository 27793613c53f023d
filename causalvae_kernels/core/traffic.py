"""Bytes that a kernel of ours moves, as its backend declares them: they cannot be observed from outside.

A backend made of the framework's operators declares nothing: whoever counts looks at those operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Pass(NamedTuple):
    """One way over tensors in memory.

    Attributes:
        name: What does it: the op, or the op and the part of it.
        read: Bytes.
        written: Bytes.
        convolution: Whether these are the bytes of a convolution with more than one tap: its input, its
            weights, its output.
    """

    name: str
    read: int
    written: int
    convolution: bool = False


class Work(NamedTuple):
    """What a call must do, whatever runs it.

    Attributes:
        flops: Floating-point operations of the direct form, a multiply-add counted as two.
        bytes: That are read and written where each tensor is touched as often as it must be.
    """

    flops: int
    bytes: int

    def __str__(self) -> str:
        return f"{_short(self.flops)}FLOP, {_short(self.bytes)}B"


def _short(number: int) -> str:
    """Return a number with three digits and a prefix: "1.51 G"."""
    size, prefixes = float(number), iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while size >= 999.5 and prefix != "T":
        size, prefix = size / 1000, next(prefixes)
    return f"{size:.3g} {prefix}"


def bytes_of(*tensors: Tensor | None) -> int:
    """Return the bytes under these tensors, None counting as none; what is expanded lies there once."""
    total = 0
    for tensor in tensors:
        if tensor is None:
            continue
        elements = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            elements *= size if stride or not size else 1
        total += elements * tensor.element_size()
    return total


def bytes_of_shape(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return the bytes of a dense tensor."""
    elements = 1
    for size in shape:
        elements *= size
    return elements * dtype.itemsize
