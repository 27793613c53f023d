"""The bytes that our kernel of `upsample_conv` moves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...core.traffic import Pass, bytes_of, bytes_of_shape
from .spec import output_size


def moves(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    scale: Sequence[int],
    first_chunk: bool,
    *_: object,
) -> list[Pass]:
    """Return one pass, and another where frames that are equal are computed once and copied."""
    frames, height, width = output_size(x.shape, scale, first_chunk)
    frame = bytes_of_shape((x.shape[0], weight.shape[0], 1, height, width), x.dtype)
    read = bytes_of(x, weight, bias, initial_state)
    if weight.shape[2] == 3 or scale[0] == 1:
        return [Pass("upsample_conv", read, frames * frame, True)]
    repeated = (frames - x.shape[2]) * frame
    return [
        Pass("upsample_conv", read, x.shape[2] * frame, True),
        Pass("upsample_conv, equal frames", repeated, repeated),
    ]
