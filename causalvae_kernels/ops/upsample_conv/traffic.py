"""The bytes that our kernels of `upsample_conv` move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def moves_by_phase(x: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> list[Pass]:
    """Return the same for a kernel that is launched for each phase: every launch reads the frames."""
    passes = moves(x, weight, bias, *others)
    again = (_phases(weight, others[1]) - 1) * bytes_of(x, others[0])
    return [passes[0]._replace(read=passes[0].read + again), *passes[1:]]


def _phases(weight: Tensor, scale: Sequence[int]) -> int:
    return (4 if scale[1] == 2 else 1) * (2 if scale[0] == 2 and weight.shape[2] == 3 else 1)
