"""The size classes of padding: what was measured for calls like one, out of place and in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...core.size_class import measured_by_size
from ...core.tuned import Measurement, Tuned
from .spec import BorderArgs, PadArgs

TUNED = Tuned(Path(__file__).parent / "tuned", multiplies=False, op="causal_pad3d")
IN_PLACE = "in place"


def measured(args: PadArgs, precision: str, out: Tensor | None) -> Measurement | None:
    """Return what was measured for calls of `causal_pad3d` like this one, or None.

    Raises:
        BadMeasurements: The file of measurements cannot be used.
    """
    tensors = (args.x, args.initial_state, out)
    return measured_by_size(TUNED, *tensors, written=math.prod(args.out_shape))


def measured_in_place(args: BorderArgs, precision: str, out: Tensor) -> Measurement | None:
    """Return what was measured for calls of `causal_pad3d_` like this one, or None.

    Raises:
        BadMeasurements: The file of measurements cannot be used.
    """
    _, _, frames, height, width = out.shape
    top, bottom, left, right = args.spatial_padding
    body = (frames - args.causal_padding) * (height - top - bottom) * (width - left - right)
    border = out.shape[0] * out.shape[1] * (frames * height * width - body)
    return measured_by_size(TUNED, out, args.initial_state, written=border, variant=IN_PLACE)


def written(shape: Sequence[int], causal_padding: int, spatial_padding: Sequence[int]) -> int:
    """Return how many elements a padded copy of frames of this shape has."""
    batch, channels, frames, height, width = shape
    top, bottom, left, right = spatial_padding
    return math.prod((batch, channels, causal_padding + frames, top + height + bottom, left + width + right))
