"""The size classes of memory-bound ops: calls that share one measurement.

Such an op is as fast as memory is, so that a class says what memory sees: bits of an element, memory format,
whether the op works in place, and how many elements it writes, by the nearest measured number on a
logarithmic scale. The same words serve CPUs (`tuned/<isa>.json`) and GPUs (`tuned/<architecture>.json`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .layout import is_channels_last_3d
from .tuned import Measurement, Tuned, architecture_of

ELEMENTS = tuple(4**n for n in range(6, 15))  # 4,096 to 268,435,456


def measured_by_size(
    tuned: Tuned, *tensors: Tensor | None, written: int, variant: str = ""
) -> Measurement | None:
    """Return what was measured for calls like this one on the device of its tensors, or None.

    Args:
        tuned: The measurements of the op.
        *tensors: Those of its size that it reads and writes, one at least; None is left out.
        written: How many elements it writes.
        variant: What else tells its calls apart, in words: "in place".

    Raises:
        BadMeasurements: The file of measurements cannot be used.
    """
    given = [t for t in tensors if t is not None]
    architecture = architecture_of(given[0].device)
    if architecture is None:
        return None
    return tuned.find(architecture, size_classes(*given, written=written, variant=variant))


def size_classes(*tensors: Tensor, written: int, variant: str = "") -> Iterator[str]:
    """Give the classes whose measurements hold for a call, its own first, then those of fewer elements.

    Sizes above the largest measured one use its entry. There is none for tensors of several memory formats
    or of neither, and none below 2,048 elements. The arguments are those of `measured_by_size`.
    """
    formats = {_format_of(t) for t in tensors}
    if len(formats) > 1 or None in formats:
        return
    for size in sizes_up_to(written, ELEMENTS):
        yield class_words(tensors[0].element_size(), *formats, size, variant)


def class_words(itemsize: int, memory_format: str, elements: int, variant: str = "") -> str:
    """Return a class as words: "16-bit channels_last_3d in place, 65536 elements"."""
    more = "+" if elements == ELEMENTS[-1] else ""
    return f"{8 * itemsize}-bit {memory_format}{variant and ' '}{variant}, {elements}{more} elements"


def nearest(count: int, sizes: Sequence[int]) -> int:
    """Return the nearest of these sizes on a logarithmic scale; 0 for less than half of the smallest.

    Args:
        count: What to look up.
        sizes: Growing, each four times the one before.
    """
    if 2 * count < sizes[0]:
        return 0
    return next((size for size in sizes if count < 2 * size), sizes[-1])


def sizes_up_to(count: int, sizes: Sequence[int]) -> list[int]:
    """Return the nearest of these sizes and all smaller ones, the largest first."""
    largest = nearest(count, sizes)
    return [size for size in reversed(sizes) if size <= largest]


def _format_of(x: Tensor) -> str | None:
    """Return the memory format of a tensor, or of that of which it is a window; None for other strides."""
    if is_channels_last_3d(x):
        return str(torch.channels_last_3d).removeprefix("torch.")
    least = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if size > 1:
            if stride < least or (least == 1 and stride > 1):
                return None
            least = size * stride
    return "contiguous"
