"""Folds of a kernel: taps that see one pixel, summed.

An upsampled axis shows every pixel twice, so that along it a kernel of three sees two pixels, one of them
through two taps; a single frame that is repeated before itself is seen through all taps of time.

A sum of weights rounded to 16 bits loses digits: 1.4 times the convolution's error on random numbers, and
any multiple of it where taps cancel, as on smooth images. So it is made in float32 and kept in two parts,
`high` and `low`, each a tap of its own; both see the same pixel. In float32 one part is enough, since the sum
of products is rounded more coarsely than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

NONE, PAIRS, ALL = "none", "pairs", "all"


@dataclass(frozen=True)
class Fold:
    """The taps of folded kernels, one for each phase: outputs that see their pixels through the same taps.

    Taps go over a window of pixels, frame by frame, the summed pixels first, so that their low parts can
    follow the high parts of each frame. Along a doubled axis the taps are (w1 + w2, w0) for even outputs,
    going back, and (w0 + w1, w2) for odd ones, going forward. In space both begin at the output's own pixel;
    in time, where the kernel looks back, odd outputs, first frames of pairs, begin one frame before their
    own.

    Attributes:
        kernel_size: (time, height, width) of the kernel before.
        time: NONE; PAIRS, frames come twice; or ALL, there is one frame.
        space: Rows and columns come twice.
        split: Keep sums in two parts.
    """

    kernel_size: tuple[int, int, int]
    time: str
    space: bool
    split: bool

    @property
    def phases(self) -> int:
        """How many kernels there are. A number holds (time, row, column) as bits, the folded ones of them."""
        return (2 if self.time == PAIRS else 1) * (4 if self.space else 1)

    def parities(self, phase: int) -> tuple[int, int, int]:
        """Return 1 for the odd outputs of a doubled axis, 0 for even ones, along (time, height, width)."""
        bits = 2 if self.space else 0
        return phase >> bits, (phase >> 1) & 1 if self.space else 0, phase & 1 if self.space else 0

    @property
    def window(self) -> tuple[int, int, int]:
        """(time, height, width): the pixels that an output sees."""
        frames, height, width = self.kernel_size
        frames = {NONE: frames, PAIRS: 2, ALL: 1}[self.time]
        return (frames, 2, 2) if self.space else (frames, height, width)

    @property
    def taps_of_frames(self) -> tuple[int, ...]:
        """Taps of each frame of the window."""
        frames, height, width = self.window
        pixels = height * width
        some = pixels - 1 if self.space else 0  # all pixels but one are sums where space is folded
        summed = [pixels if self.time != NONE and frame == 0 else some for frame in range(frames)]
        return tuple(pixels + low * self.split for low in summed)

    @property
    def taps(self) -> int:
        """Of a kernel."""
        return sum(self.taps_of_frames)


def single_frame(kernel_size: Sequence[int], dtype: torch.dtype) -> Fold | None:
    """Return the fold for one frame that is repeated before itself, or None where it saves nothing."""
    frames, height, width = kernel_size
    fold = Fold((frames, height, width), ALL, False, dtype != torch.float32)
    return fold if fold.taps < frames * height * width else None
