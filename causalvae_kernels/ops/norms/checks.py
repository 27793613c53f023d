"""Argument checks of the norm ops, and what autocast makes of their arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.checks import check_count, check_shape
from ...core.errors import InvalidInput

HALVES = (torch.bfloat16, torch.float16)


def check_groups(op: str, x: Tensor, num_groups: object) -> int:
    """Return the number of groups, which must divide the channels."""
    groups = check_count(op, "num_groups", num_groups, x.shape[1])
    if x.shape[1] % groups:
        raise InvalidInput(f"{op}: num_groups is {groups}, expected a divisor of the {x.shape[1]} channels")
    return groups


def check_eps(op: str, eps: object) -> float:
    """Return what is added to the variance."""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not eps >= 0:
        raise InvalidInput(f"{op}: eps is {eps!r}, expected a number that is not negative")
    return float(eps)


def check_activation(op: str, activation: object) -> bool:
    """Return whether SiLU follows the norm."""
    if activation is None:
        return False
    if not isinstance(activation, str) or activation != "silu":
        raise InvalidInput(f"{op}: activation is {activation!r}, expected 'silu' or None")
    return True


def check_parameter(op: str, name: str, parameter: Tensor | None, x: Tensor) -> None:
    """Require one number per channel, in the dtype of `x` or, as the framework has it, in float32."""
    if parameter is None:
        return
    check_shape(op, name, parameter, (x.shape[1],), "(C,)")
    allowed = (x.dtype, torch.float32) if x.dtype in HALVES else (x.dtype,)
    if parameter.dtype not in allowed:
        raise InvalidInput(
            f"{op}: {name} is {parameter.dtype} and x is {x.dtype}, expected {name} in "
            f"{' or '.join(map(str, allowed))}"
        )
    if parameter.device != x.device:
        raise InvalidInput(f"{op}: {name} is on {parameter.device} and x on {x.device}, expected one device")


def check_same_dtype(op: str, first: str, one: Tensor | None, second: str, other: Tensor | None) -> None:
    """Require that two tensors, if both are given, have one dtype."""
    if one is not None and other is not None and one.dtype != other.dtype:
        raise InvalidInput(
            f"{op}: {first} is {one.dtype} and {second} is {other.dtype}, expected one dtype; convert one of "
            "them with .to(...)"
        )


def as_autocast(call: Any, out: Tensor | None) -> Any:
    """Return the record of a group norm as autocast hands it over: half precision as float32 on a GPU.

    `group_norm` is in the list of operators that run in float32 on CUDA, and in no list on a CPU. With a
    destination nothing is cast: it has a dtype already.
    """
    x = call.x
    if out is not None or not isinstance(x, Tensor) or x.is_meta or x.device.type == "cpu":
        return call
    if not torch.is_autocast_enabled(x.device.type):
        return call
    given = {name: getattr(call, name) for name in ("x", "weight", "bias")}
    halves = {n: t for n, t in given.items() if isinstance(t, Tensor) and t.dtype in HALVES}
    return call._replace(**{name: t.float() for name, t in halves.items()})
