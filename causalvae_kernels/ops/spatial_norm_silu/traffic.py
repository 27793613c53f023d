"""The bytes that our kernels of `spatial_norm_silu` move."""

from __future__ import annotations

from torch import Tensor

from ...core.traffic import Pass
from .spec import bytes_moved


def moves(x: Tensor, scale: Tensor, *_: object) -> list[Pass]:
    """Return its pass: x is read twice, scale and shift once, where they lie."""
    written = x.numel() * x.element_size()
    moved = bytes_moved(x.shape, scale.shape[2:], x.element_size())
    return [Pass("spatial_norm_silu", moved - written, written)]
