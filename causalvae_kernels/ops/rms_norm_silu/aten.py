"""Wan's RMS norm by the framework, each step but the first written over the last."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.op import Backend
from ..norms.group_norm import activate, activate_into, wide
from .reference import length


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, silu: bool, precision: str
) -> Tensor:
    return activate(_scaled(x, weight, bias, eps), silu)


def _normalise_into(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, silu: bool, precision: str
) -> None:
    activate_into(out, _scaled(x, weight, bias, eps), silu, precision)


def _scaled(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return the norm before SiLU in fresh memory, rounded where the reference rounds."""
    y = (wide(x) / length(x, eps)).to(x.dtype).mul_(x.shape[1] ** 0.5)
    y = y.to(torch.promote_types(x.dtype, weight.dtype)).mul_(weight.view(-1, 1, 1, 1))
    return y if bias is None else y.add_(bias.view(-1, 1, 1, 1))


NORM = Backend("aten", _normalise)
NORM_ = Backend("aten", _normalise_into)
