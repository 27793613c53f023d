"""The spatial norm by the native CPU module: scale and shift are read where they lie, never repeated."""

from __future__ import annotations

from torch import Tensor

from ....core import native
from ....core.backend import Backend
from ...norms.backends.cpu import DTYPES, NormPlan, why_not_norm, writer
from ..spec import SpatialNormArgs, moves, repeats, why_not_scale


def _why_not(args: SpatialNormArgs, precision: str, out: Tensor | None) -> str | None:
    return why_not_norm(args.x, args.out_dtype, precision) or why_not_scale(args.x, args.scale)


def _bind(args: SpatialNormArgs, out: Tensor, must_keep: bool = False) -> NormPlan:
    lone_first, *times = repeats(args.x.shape[2:], args.scale.shape[2:])
    plan = native.cpu_module().GroupNormPlan(
        native.describe(out),
        native.describe(args.x),
        native.describe(args.scale),
        native.describe(args.shift),
        args.num_groups,
        args.eps,
        args.silu,
        lone_first,
        tuple(times),
        DTYPES[args.x.dtype],
        native.cpu_isa(),
    )
    return NormPlan(plan, latents=2)


NORM = Backend("cpu", writer(_bind), why_not=_why_not, bind=_bind, moves=moves)
