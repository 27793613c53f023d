"""Group norm by the framework; the activation is written over it, or into the destination."""

from __future__ import annotations

from torch import Tensor

from ...core.op import Backend
from ..norms.group_norm import activate, activate_into, careful_group_norm


def _normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
    precision: str,
) -> Tensor:
    return activate(careful_group_norm(x, num_groups, weight, bias, eps, precision), silu)


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
    activate_into(out, careful_group_norm(x, num_groups, weight, bias, eps, precision), silu, precision)


NORM = Backend("aten", _normalise)
NORM_ = Backend("aten", _normalise_into)
