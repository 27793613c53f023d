"""The spatial norm in Triton, on NVIDIA GPUs: scale and shift are read where they lie, never repeated."""

from __future__ import annotations

from torch import Tensor

from .....core.backend import Backend
from ....norms.backends.triton import why_not_norm
from ...spec import SpatialNormArgs, moves, repeats, why_not_scale


def _why_not(args: SpatialNormArgs, precision: str, out: Tensor | None) -> str | None:
    return why_not_norm(args.x, args.out_dtype, precision) or why_not_scale(args.x, args.scale)


def _write(out: Tensor, args: SpatialNormArgs, precision: str) -> None:
    from ....norms.backends.triton.group_norm import launches

    x, scale, shift, *norm = args
    for launch in launches(out, x, *norm, scale, shift, repeats(x.shape[2:], scale.shape[2:])):
        launch.run()


NORM = Backend("triton", _write, why_not=_why_not, moves=moves)
