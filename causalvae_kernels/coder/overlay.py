"""A convolution that writes over what it reads, a few frames at a time.

An output frame needs input frames up to its own. So the last ones come first, each written `GROUP` frames
further behind than its input lies, where only inputs lie that no earlier output needs. Of fewer channels they
lie flush with the end of what they are computed from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .steps import CopyStep, OpStep, State, Steps, Value, View

# Frames that are convolved at a time. An even number: Winograd's form takes frames in pairs.
GROUP = 2


@dataclass(frozen=True)
class Overlay:
    """A convolution in pieces.

    Attributes:
        steps: The pieces.
        x: What they read, and write over.
        lag: How many frames the output lies behind the input.
        offset: At which byte of the input the output begins, if it has fewer channels.
    """

    steps: list[OpStep | CopyStep]
    x: Value
    lag: int = GROUP
    offset: int = 0


def overlaid(step: OpStep, read: Steps) -> Overlay | None:
    """Return a `causal_conv3d` in pieces, or None where it cannot write over its input."""
    x, weight, _, past, residual = step.operands
    stride, dilation, mode, spatial = step.options
    batch, channels, frames, height, width = x.shape
    made = step.result.shape[1]
    dense = batch == 1 and read.memory_format == torch.channels_last_3d
    if not (
        residual is None
        and step.part is step.sample is None
        and tuple(stride) == tuple(dilation) == (1, 1, 1)
        and (mode, spatial) == ("replicate", "zeros")
        and weight.get().shape[2] == 3
        and frames > GROUP
        and step.result.dtype == x.dtype
        and (made == channels or (made < channels and dense))
    ):
        return None
    first_chunk = not (isinstance(past, State) and past.given)
    frame = height * width * x.dtype.itemsize
    reads, writes = channels * frame, made * frame
    start = frames * (reads - writes)
    pieces: list[OpStep | CopyStep] = []
    waiting: list[CopyStep] = []
    keeps = step.state
    for first, count in reversed(_groups(frames, first_chunk)):
        before = past
        if first >= 2:
            before = View(x, first - 2, 2)
        elif first:  # nothing stands before a first chunk but its first frame
            before = View(x, 0, 1, repeats=2)
        operands = (View(x, first, count), *step.operands[1:3], before, None)
        piece = replace(step, operands=operands, state=keeps)
        if made < channels and start + first * writes < (first + count) * reads:
            # It would lie over inputs of its own group.
            beside = read.new((batch, made, count, height, width), x.dtype)
            pieces.append(replace(piece, result=beside))
            waiting.append(CopyStep(step.path, beside, step.result, (first, count, 1)))
        else:
            pieces.append(replace(piece, part=(first, count, 1)))
        keeps = None  # taken before anything is overwritten
    lag = GROUP if made == channels else 0
    return Overlay([*pieces, *waiting], x, lag, start)


def _groups(frames: int, first_chunk: bool) -> list[tuple[int, int]]:
    """Return the first frame of each group and their number: in pairs as Winograd's form takes them.

    Of an odd number it takes the first frame alone where nothing is in front of it, else the last one.
    """
    lone = frames % GROUP if first_chunk else 0
    return ([(0, lone)] if lone else []) + [
        (first, min(GROUP, frames - first)) for first in range(lone, frames, GROUP)
    ]
