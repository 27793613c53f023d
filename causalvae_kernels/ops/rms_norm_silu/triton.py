"""Wan's RMS norm in Triton, on NVIDIA GPUs: one pass over x, in the reference's order.

It rounds to the dtype of x where the model does, after the division, and once more at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.op import Backend
from ...core.traffic import into
from ..norms.cpu import empty_like_format
from ..norms.triton import why_not_norm
from .traffic import moves


def _why_not(x: Tensor, weight: Tensor, *others: Any) -> str | None:
    return why_not_norm(x, torch.promote_types(x.dtype, weight.dtype), others[-1])


def _why_not_into(out: Tensor, x: Tensor, *others: Any) -> str | None:
    return why_not_norm(x, out.dtype, others[-1])


def _normalise_into(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, silu: bool, precision: str
) -> None:
    from .triton_kernels import launch

    launch(out, x, weight, bias, eps, silu).run()


def _normalise(x: Tensor, *others: Any) -> Tensor:
    out = empty_like_format(x)
    _normalise_into(out, x, *others)
    return out


NORM = Backend("triton", _normalise, _why_not, moves=moves)
NORM_ = Backend("triton", _normalise_into, _why_not_into, moves=into(moves))
