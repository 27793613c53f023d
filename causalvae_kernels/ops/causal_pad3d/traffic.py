"""The bytes that our kernels of `causal_pad3d` move."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...core.traffic import Pass
from ...temporal.frame_buffer import body_of
from .spec import BorderArgs, PadArgs, bytes_moved


def moves(args: PadArgs, out: Tensor | None) -> list[Pass]:
    """Return the pass that writes padded frames."""
    return _passes("causal_pad3d", args.x, args.causal_padding, args.spatial_padding, in_place=False)


def moves_in_place(args: BorderArgs, storage: Tensor) -> list[Pass]:
    """Return the pass that writes the border."""
    border = (args.causal_padding, args.spatial_padding)
    return _passes("causal_pad3d_", body_of(storage, *border), *border, in_place=True)


def _passes(
    name: str, x: Tensor, causal_padding: int, spatial_padding: Sequence[int], *, in_place: bool
) -> list[Pass]:
    moved = bytes_moved(x.shape, causal_padding, spatial_padding, x.element_size(), in_place=in_place)
    return [Pass(name, moved // 2, moved // 2)]
