"""The bytes that our kernels of `spatial_norm` move."""

from __future__ import annotations

from torch import Tensor

from ...core.traffic import Pass
from .spec import SpatialNormArgs, bytes_moved


def moves(args: SpatialNormArgs, out: Tensor | None) -> list[Pass]:
    """Return its pass: x is read twice, scale and shift once, where they lie."""
    written = args.x.numel() * args.x.element_size()
    moved = bytes_moved(args.x.shape, args.scale.shape[2:], args.x.element_size())
    return [Pass("spatial_norm", moved - written, written)]
