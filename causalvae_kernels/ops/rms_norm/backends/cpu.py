"""Wan's RMS norm by the native CPU module: one pass over x, in the reference's order.

It rounds to the dtype of x where the model does, after the division, and once more at the end. The model
rounds as well after scaling, multiplying, adding and activating, each of which costs digits.
"""

from __future__ import annotations

from torch import Tensor

from ....core import native
from ....core.backend import Backend
from ...norms.backends.cpu import DTYPES, NormPlan, why_not_norm, writer
from ..spec import RmsNormArgs, moves


def _why_not(args: RmsNormArgs, precision: str, out: Tensor | None) -> str | None:
    return why_not_norm(args.x, args.out_dtype, precision)


def _bind(args: RmsNormArgs, out: Tensor, must_keep: bool = False) -> NormPlan:
    plan = native.cpu_module().RmsNormPlan(
        native.describe(out),
        native.describe(args.x),
        args.eps,
        args.silu,
        DTYPES[args.x.dtype],
        native.cpu_isa(),
    )
    return NormPlan(plan)


NORM = Backend("cpu", writer(_bind), why_not=_why_not, bind=_bind, moves=moves)
