"""The bytes that our kernels of `upsample_conv` move."""

from __future__ import annotations

from torch import Tensor

from ...core.traffic import Pass, bytes_of, bytes_of_shape
from .spec import UpsampleArgs


def moves(args: UpsampleArgs, out: Tensor | None) -> list[Pass]:
    """Return one pass, and another where frames that are equal are computed once and copied."""
    batch, channels, frames, height, width = args.out_shape
    frame = bytes_of_shape((batch, channels, 1, height, width), args.out_dtype)
    read = bytes_of(args.x, args.weight, args.bias, args.initial_state)
    if args.weight.shape[2] == 3 or args.scale[0] == 1:
        return [Pass("upsample_conv", read, frames * frame, True)]
    computed = args.x.shape[2]
    repeated = (frames - computed) * frame
    return [
        Pass("upsample_conv", read, computed * frame, True),
        Pass("upsample_conv, equal frames", repeated, repeated),
    ]


def moves_by_phase(args: UpsampleArgs, out: Tensor | None) -> list[Pass]:
    """Return the same for a kernel that is launched for each phase: every launch reads the frames."""
    first, *others = moves(args, out)
    phases = (4 if args.scale[1] == 2 else 1) * (2 if args.folds_time else 1)
    again = (phases - 1) * bytes_of(args.x, args.initial_state)
    return [first._replace(read=first.read + again), *others]
