"""Wan's RMS norm by the native CPU module: one pass over x, in the reference's order.

It rounds to the dtype of x where the model does, after the division, and once more at the end. The model
rounds as well after scaling, multiplying, adding and activating, each of which costs digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core import native
from ...core.op import Backend
from ...core.traffic import into
from ..norms.cpu import DTYPES, address, as_floats, empty_like_format, why_not_norm
from .traffic import moves


def _why_not(x: Tensor, weight: Tensor, *others: object) -> str | None:
    return why_not_norm(x, torch.promote_types(x.dtype, weight.dtype), others[-1])


def _why_not_into(out: Tensor, x: Tensor, *others: object) -> str | None:
    return why_not_norm(x, out.dtype, others[-1])


def _normalise_into(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, silu: bool, precision: str
) -> None:
    weight, bias = as_floats(weight), as_floats(bias)
    native.cpu_module().rms_norm(
        native.describe(out),
        native.describe(x),
        address(weight),
        address(bias),
        eps,
        silu,
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
