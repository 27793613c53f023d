"""One block of memory for all activations of a run: what lives at the same time lies side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import memory, native

# Of the addresses: a cache line.
_ALIGNMENT = 64


class Span(NamedTuple):
    """A piece of memory and the steps between which it is needed.

    Attributes:
        size: Bytes.
        first: The step that writes it.
        last: The last one that reads it.
    """

    size: int
    first: int
    last: int


def place(spans: Sequence[Span]) -> tuple[list[int], int]:
    """Return an offset for each span, and how many bytes all of them take together.

    Spans that live at the same time do not overlap. The largest are placed first, each into the smallest gap
    that it fits between those that are there (greedy by size: Pisarchyk and Lee, Efficient Memory Management
    for Deep Neural Net Inference, 2020).
    """
    offsets, total = [0] * len(spans), 0
    placed: list[int] = []
    for index in sorted(range(len(spans)), key=lambda i: -spans[i].size):
        size, first, last = spans[index]
        beside = [i for i in placed if spans[i].first <= last and first <= spans[i].last]
        begin, best, smallest = 0, None, None
        for i in sorted(beside, key=offsets.__getitem__):
            gap = offsets[i] - begin
            if gap >= size and (smallest is None or gap < smallest):
                best, smallest = begin, gap
            begin = max(begin, offsets[i] + _aligned(spans[i].size))
        offsets[index] = begin if best is None else best
        placed.append(index)
        total = max(total, offsets[index] + _aligned(size))
    return offsets, total


class Arena:
    """Memory that is there while it is asked for; views of it stay what they are.

    Attributes:
        device: Where it is.
        stream: On a GPU the stream that its work is queued on: on another one it may not be done.
    """

    def __init__(self, device: torch.device) -> None:
        """Prepare an arena without memory."""
        self.device, self.stream = device, stream_of(device)
        self._bytes = self._empty(0)
        self._shown: Tensor | None = None

    def __len__(self) -> int:
        """Return how many bytes there are."""
        return self._bytes.untyped_storage().nbytes()

    def reserve(self, size: int) -> None:
        """Have at least so many bytes; what was in there is lost if there were fewer."""
        if is_shown():  # to a mode, which counts what is allocated by an operator
            if self._shown is None or self._shown.numel() < size:
                self._shown = None
                self._shown = self._empty(size)
            return
        there = self._bytes.untyped_storage()
        if there.nbytes() >= size:
            return
        there.resize_(0)  # otherwise the old bytes would be copied
        there.resize_(size)
        if self.device.type == "cpu" and size >= memory.LARGE and native.why_no_cpu() is None:
            native.cpu_module().advise_huge_pages(there.data_ptr(), size)

    def hide(self) -> None:
        """Give back what a mode has seen."""
        self._shown = None

    def release(self) -> None:
        """Give the memory back."""
        self.hide()
        self._bytes.untyped_storage().resize_(0)

    def view(self, offset: int, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor over bytes that are reserved."""
        with torch.inference_mode(False), torch.no_grad():
            whole = self._shown
            if not is_shown():
                there = self._bytes.untyped_storage()
                whole = self._empty(0).set_(there, 0, (there.nbytes(),), (1,))
            return whole.view(dtype).as_strided(shape, strides, offset // dtype.itemsize)

    def _empty(self, size: int) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return torch.empty(size, dtype=torch.uint8, device=self.device)


def stream_of(device: torch.device) -> int:
    """Return torch's current stream on a GPU, as a number; 0 elsewhere."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def is_shown() -> bool:
    """Tell whether a mode sees operators: a dry run, a counter, a profiler."""
    return torch._C._len_torch_dispatch_stack() > 0


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
