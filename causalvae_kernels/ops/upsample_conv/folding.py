"""The folded weights of an upsampling convolution: a kernel for each phase of the output.

Along a doubled axis a kernel of three sees two inputs, one of them twice. Which one depends on the parity of
the output: the weights are (w0, w1 + w2) or (w0 + w1, w2). Sums are made and kept in float32, whatever the
model's dtype: rounded, they would cost digits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Phase(NamedTuple):
    """Output elements that one folded kernel computes.

    Attributes:
        time: 0 for the first frame of each pair, 1 for the second one, and where frames are not doubled.
        rows: 0 for even rows, 1 for odd ones; None where space is not doubled.
        columns: The same for columns.
    """

    time: int
    rows: int | None
    columns: int | None

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Pixels that the folded kernel sees beyond each edge: (top, bottom, left, right)."""
        return (*_beyond(self.rows), *_beyond(self.columns))

    @property
    def zero_taps(self) -> tuple[int, int]:
        """Row and column that are zeros in the folded kernel of three rows and columns; -1 for none."""
        return _zero_tap(self.rows), _zero_tap(self.columns)


def phases(kernel_frames: int, scale: Sequence[int]) -> list[Phase]:
    """Return the phases of an output, time outermost. Frames convolved one by one have none in time."""
    time = (0, 1) if scale[0] == 2 and kernel_frames == 3 else (1,)
    space = (0, 1) if scale[1] == 2 else (None,)
    return [Phase(*phase) for phase in itertools.product(time, space, space)]


def folded(weight: Tensor, scale: Sequence[int]) -> Iterator[tuple[Phase, Tensor]]:
    """Yield each phase and its kernel, (Cout, Cin, kT', kH', kW') in float32: two taps along doubled axes."""
    weight = weight.float()
    in_phases = phases(weight.shape[2], scale)
    for time in sorted({phase.time for phase in in_phases}):
        # The second frame of a pair and the one before it, which is not its twin, are told apart by w0.
        doubled = scale[0] == 2 and weight.shape[2] == 3
        kernel = _fold(weight, 2, late=time == 0) if doubled else weight
        for phase in in_phases:
            if phase.time != time:
                continue
            part = kernel
            for dim, parity in ((3, phase.rows), (4, phase.columns)):
                part = part if parity is None else _fold(part, dim, late=parity == 1)
            yield phase, part


def with_zero_taps(phase: Phase, kernel: Tensor) -> Tensor:
    """Return a folded kernel with three rows and columns, those of zeros added."""
    top, bottom, left, right = phase.padding
    if phase.rows is None:
        return kernel
    # An output that sees one row above sees none below.
    return F.pad(kernel, (right, left, bottom, top))


def _fold(weight: Tensor, dim: int, *, late: bool) -> Tensor:
    """Return (w0 + w1, w2) if `late`, the second input being seen once, else (w0, w1 + w2)."""
    first, middle, last = weight.unbind(dim)
    return torch.stack((first + middle, last) if late else (first, middle + last), dim)


def _beyond(parity: int | None) -> tuple[int, int]:
    return (1, 1) if parity is None else (1 - parity, parity)


def _zero_tap(parity: int | None) -> int:
    return -1 if parity is None else 2 - 2 * parity
