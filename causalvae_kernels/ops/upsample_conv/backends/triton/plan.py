"""How an upsampling convolution is cut into those of the small frames; knows no Triton."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....causal_conv3d.backends.triton.folds import ALL, NONE, PAIRS, Fold
from ...spec import UpsampleArgs
from ..folding import of_pairs


@dataclass(frozen=True)
class Part:
    """The convolution of one phase.

    Attributes:
        phase: The number of its kernel among those of the fold.
        out: The window of the output that it writes.
        dilation: (time, height, width): pixels from a tap to the next, -1 to walk back.
        front: Frames from the first tap of its first output to the first frame.
        top: Rows from the first tap of its first output to the first row.
        left: The same in columns.
    """

    phase: int
    out: Tensor
    dilation: tuple[int, int, int]
    front: int
    top: int
    left: int


@dataclass(frozen=True)
class UpsamplePlan:
    """The convolutions of a call.

    Attributes:
        fold: What is summed of the kernel; None where nothing is.
        causal: Frames that an output may see before the first one.
        parts: What is computed.
        copies: (to, from) windows of the output: frames that are equal are computed once.
    """

    fold: Fold | None
    causal: int
    parts: tuple[Part, ...]
    copies: tuple[tuple[Tensor, Tensor], ...]


def plan_upsample(out: Tensor, args: UpsampleArgs) -> UpsamplePlan:
    """Work out the convolutions that write `out`."""
    x, first_chunk, kernel_frames = args.x, args.first_chunk, args.weight.shape[2]
    doubled, space = args.scale[0] == 2, args.scale[1] == 2
    first_alone = x.shape[2] == 1 and args.initial_state is None and args.temporal_mode == "replicate"
    time = ALL if first_alone and kernel_frames > 1 else PAIRS if args.folds_time else NONE
    fold = None
    if time != NONE or space:
        fold = Fold(tuple(args.weight.shape[2:]), time, space, x.dtype != torch.float32)
    causal = {NONE: kernel_frames - 1, PAIRS: 1, ALL: 0}[time]
    if not doubled:
        return UpsamplePlan(fold, causal, _parts(fold, [(out, causal)]), ())
    seconds, firsts = of_pairs(out, first_chunk)
    if time == PAIRS:
        # Behind a single first frame the first frame of a pair sees that frame and its own.
        return UpsamplePlan(fold, causal, _parts(fold, [(seconds, 0), (firsts, 1 - int(first_chunk))]), ())
    copies = ((firsts, seconds[:, :, int(first_chunk) :]),) if firsts.shape[2] else ()
    return UpsamplePlan(fold, causal, _parts(fold, [(seconds, causal)]), copies)


def _parts(fold: Fold | None, windows: Sequence[tuple[Tensor, int]]) -> tuple[Part, ...]:
    """Return the phases in space of each of these windows of frames, given with their `front`."""
    phases = 1 if fold is None or not fold.space else 4
    return tuple(
        _part(fold, number * phases + index, window, front)
        for number, (window, front) in enumerate(windows)
        for index in range(phases)
        if window.shape[2]
    )


def _part(fold: Fold | None, phase: int, window: Tensor, front: int) -> Part:
    if fold is None:
        return Part(phase, window, (1, 1, 1), front, 1, 1)
    time, row, column = fold.parities(phase)
    step = 1 if fold.time != PAIRS or time else -1
    if not fold.space:
        return Part(phase, window, (step, 1, 1), front, 1, 1)
    out = window[:, :, :, row::2, column::2]
    return Part(phase, out, (step, 2 * row - 1, 2 * column - 1), front, 0, 0)
