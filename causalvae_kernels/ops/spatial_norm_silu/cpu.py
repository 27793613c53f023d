"""The spatial norm by the native CPU module: scale and shift are read where they lie, never repeated."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core import native
from ...core.op import Backend
from ...core.traffic import into
from ..norms.cpu import DTYPES, address, as_floats, empty_like_format, why_not_norm
from .spec import repeats, why_not_scale
from .traffic import moves


def _why_not(x: Tensor, scale: Tensor, *others: object) -> str | None:
    return why_not_norm(x, torch.promote_types(x.dtype, scale.dtype), others[-1]) or why_not_scale(x, scale)


def _why_not_into(out: Tensor, x: Tensor, scale: Tensor, *others: object) -> str | None:
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
    weight, bias = as_floats(weight), as_floats(bias)
    lone_first, *times = repeats(x.shape[2:], scale.shape[2:])
    native.cpu_module().group_norm(
        native.describe(out),
        native.describe(x),
        native.describe(scale),
        native.describe(shift),
        address(weight),
        address(bias),
        num_groups,
        eps,
        silu,
        lone_first,
        tuple(times),
        DTYPES[x.dtype],
        native.cpu_isa(),
        torch.get_num_threads(),
    )


def _normalise(x: Tensor, *others: object) -> Tensor:
    out = empty_like_format(x)
    _normalise_into(out, x, *others)
    return out


NORM = Backend("cpu", _normalise, _why_not, moves=moves)
NORM_ = Backend("cpu", _normalise_into, _why_not_into, moves=into(moves))
