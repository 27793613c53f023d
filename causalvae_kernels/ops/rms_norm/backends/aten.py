"""Wan's RMS norm by the framework, each step but the first written over the last."""

from __future__ import annotations

from torch import Tensor

from ....core.backend import Backend
from ...norms.group_norm import activate, activate_into, wide
from ..reference import length
from ..spec import RmsNormArgs


def _make(args: RmsNormArgs, precision: str) -> Tensor:
    return activate(_scaled(args), args.silu)


def _write(out: Tensor, args: RmsNormArgs, precision: str) -> None:
    activate_into(out, _scaled(args), args.silu, precision)


def _scaled(args: RmsNormArgs) -> Tensor:
    """Return the norm before SiLU in fresh memory, rounded where the reference rounds."""
    x = args.x
    y = (wide(x) / length(x, args.eps)).to(x.dtype).mul_(x.shape[1] ** 0.5)
    y = y.to(args.out_dtype).mul_(args.weight.view(-1, 1, 1, 1))
    return y if args.bias is None else y.add_(args.bias.view(-1, 1, 1, 1))


NORM = Backend("aten", _write, _make)
