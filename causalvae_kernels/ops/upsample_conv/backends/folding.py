"""The folded weights of an upsampling convolution.

Along a doubled axis a kernel of three sees two inputs, one of them twice. Which one depends on the parity of
the output: the weights are (w0, w1 + w2) or (w0 + w1, w2). Sums are made and kept in float32, whatever the
model's dtype: rounded, they would cost digits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Phase(NamedTuple):
    """Output pixels that one folded kernel computes.

    Attributes:
        rows: 0 for even rows, 1 for odd ones; None where space is not doubled.
        columns: The same for columns.
    """

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

    def of(self, out: Tensor) -> Tensor:
        """Return the view of its pixels."""
        return out if self.rows is None else out[:, :, :, self.rows :: 2, self.columns :: 2]


def of_pairs(out: Tensor, first_single: bool) -> tuple[Tensor, Tensor]:
    """Return the second frames of pairs, a single first one before them, and the first frames."""
    return out[:, :, 1 - int(first_single) :: 2], out[:, :, int(first_single) :: 2]


def phases(scale: Sequence[int]) -> list[Phase]:
    """Return the phases of an output, rows outermost."""
    parities = (0, 1) if scale[1] == 2 else (None,)
    return [Phase(*phase) for phase in itertools.product(parities, parities)]


def fold_space(weight: Tensor, phase: Phase) -> Tensor:
    """Return the kernel of a phase, (Cout, Cin, kT, kH', kW'): two taps along doubled axes."""
    for dim, parity in ((3, phase.rows), (4, phase.columns)):
        if parity is not None:
            weight = _fold(weight, dim)[parity]
    return weight


def fold_time(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernels of two frames for the second and for the first frame of each pair."""
    return _fold(weight, 2)


def time_slices(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what three products take for a pair of equal frames b behind a: W0 + W1, W2 and W1.

    The first output is (W0 + W1) a + W2 b, the second one W1 (b - a) more.
    """
    first, middle, last = weight.split(1, dim=2)
    return first + middle, last, middle


def with_zero_taps(phase: Phase, kernel: Tensor) -> Tensor:
    """Return a folded kernel with three rows and columns, those of zeros added."""
    if phase.rows is None:
        return kernel
    # An output that sees one row above sees none below.
    top, bottom, left, right = phase.padding
    return F.pad(kernel, (right, left, bottom, top))


def _fold(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return (w0, w1 + w2) and (w0 + w1, w2)."""
    first, middle, last = weight.unbind(dim)
    return torch.stack((first, middle + last), dim), torch.stack((first + middle, last), dim)


def _beyond(parity: int | None) -> tuple[int, int]:
    return (1, 1) if parity is None else (1 - parity, parity)


def _zero_tap(parity: int | None) -> int:
    return -1 if parity is None else 2 - 2 * parity
