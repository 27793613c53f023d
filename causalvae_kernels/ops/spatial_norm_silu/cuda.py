"""The spatial norm by the CUDA module: scale and shift are read where they lie, never repeated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.op import Backend
from ...core.traffic import into
from ..norms.cpu import empty_like_format
from ..norms.cuda import group_norm_into, why_not_norm
from .spec import repeats, why_not_scale
from .traffic import moves


def _why_not(x: Tensor, scale: Tensor, *others: Any) -> str | None:
    result = torch.promote_types(x.dtype, scale.dtype)
    return why_not_norm(x, result, others[-1]) or why_not_scale(x, scale)


def _why_not_into(out: Tensor, x: Tensor, scale: Tensor, *others: Any) -> str | None:
    return why_not_norm(x, out.dtype, others[-1]) or why_not_scale(x, scale)


def _normalise_into(
    out: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
    precision: str,
) -> None:
    found = repeats(x.shape[2:], scale.shape[2:])
    group_norm_into(out, x, weight, bias, num_groups, eps, silu, scale, shift, found)


def _normalise(x: Tensor, *others: Any) -> Tensor:
    out = empty_like_format(x)
    _normalise_into(out, x, *others)
    return out


NORM = Backend("cuda", _normalise, _why_not, moves=moves)
NORM_ = Backend("cuda", _normalise_into, _why_not_into, moves=into(moves))
