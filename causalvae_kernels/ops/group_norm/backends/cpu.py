"""Group norm by the native CPU module: two passes over x, the second of which activates and writes."""

from __future__ import annotations

from torch import Tensor

from ....core import native
from ....core.backend import Backend
from ...norms.backends.cpu import DTYPES, NormPlan, why_not_norm, writer
from ..spec import GroupNormArgs, moves


def _why_not(args: GroupNormArgs, precision: str, out: Tensor | None) -> str | None:
    return why_not_norm(args.x, args.out_dtype, precision)


def _bind(args: GroupNormArgs, out: Tensor, must_keep: bool = False) -> NormPlan:
    plan = native.cpu_module().GroupNormPlan(
        native.describe(out),
        native.describe(args.x),
        None,
        None,
        args.num_groups,
        args.eps,
        args.silu,
        False,
        (1, 1, 1),
        DTYPES[args.x.dtype],
        native.cpu_isa(),
    )
    return NormPlan(plan, between=(0, 0))


NORM = Backend("cpu", writer(_bind), why_not=_why_not, bind=_bind, moves=moves)
