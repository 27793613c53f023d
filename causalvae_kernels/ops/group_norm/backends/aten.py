"""Group norm by the framework; the activation is written over it, or into the destination."""

from __future__ import annotations

from torch import Tensor

from ....core.backend import Backend
from ...norms.group_norm import activate, activate_into, careful_group_norm
from ..spec import GroupNormArgs


def _make(args: GroupNormArgs, precision: str) -> Tensor:
    return activate(_normalised(args, precision), args.silu)


def _write(out: Tensor, args: GroupNormArgs, precision: str) -> None:
    activate_into(out, _normalised(args, precision), args.silu, precision)


def _normalised(args: GroupNormArgs, precision: str) -> Tensor:
    return careful_group_norm(args.x, args.num_groups, args.weight, args.bias, args.eps, precision)


NORM = Backend("aten", _write, _make)
