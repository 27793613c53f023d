"""The size classes of padding: what was measured for calls like one, out of place and in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...core.size_class import measured_by_size
from ...core.tuned import Measurement, Tuned

TUNED = Tuned(Path(__file__).parent / "tuned", multiplies=False)
IN_PLACE = "in place"


def measured(
    x: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    *modes_and_precision: str,
) -> Measurement | None:
    """Return what was measured for calls of `causal_pad3d` like this one, or None.

    Raises:
        BadMeasurements: The file of measurements cannot be used.
    """
    return measured_by_size(
        TUNED, x, initial_state, written=written(x.shape, causal_padding, spatial_padding)
    )


def measured_in_place(
    storage: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    *modes_and_precision: str,
) -> Measurement | None:
    """Return what was measured for calls of `causal_pad3d_` like this one, or None.

    Raises:
        BadMeasurements: The file of measurements cannot be used.
    """
    _, _, frames, height, width = storage.shape
    top, bottom, left, right = spatial_padding
    body = (frames - causal_padding) * (height - top - bottom) * (width - left - right)
    border = storage.shape[0] * storage.shape[1] * (frames * height * width - body)
    return measured_by_size(TUNED, storage, initial_state, written=border, variant=IN_PLACE)


def written(shape: Sequence[int], causal_padding: int, spatial_padding: Sequence[int]) -> int:
    """Return how many elements a padded copy of frames of this shape has."""
    batch, channels, frames, height, width = shape
    top, bottom, left, right = spatial_padding
    return math.prod((batch, channels, causal_padding + frames, top + height + bottom, left + width + right))
