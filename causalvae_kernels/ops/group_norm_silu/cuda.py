"""Group norm by the CUDA module: two passes over x, the second of which activates and writes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.op import Backend
from ...core.traffic import into
from ..norms.cpu import empty_like_format
from ..norms.cuda import group_norm_into, why_not_norm
from .traffic import moves


def _why_not(x: Tensor, *others: Any) -> str | None:
    return why_not_norm(x, x.dtype, others[-1])


def _why_not_into(out: Tensor, x: Tensor, *others: Any) -> str | None:
    return why_not_norm(x, out.dtype, others[-1])


def _normalise_into(
    out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
    precision: str,
) -> None:
    group_norm_into(out, x, weight, bias, num_groups, eps, silu)


def _normalise(x: Tensor, *others: Any) -> Tensor:
    out = empty_like_format(x)
    _normalise_into(out, x, *others)
    return out


NORM = Backend("cuda", _normalise, _why_not, moves=moves)
NORM_ = Backend("cuda", _normalise_into, _why_not_into, moves=into(moves))
