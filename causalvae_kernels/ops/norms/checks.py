"""Argument checks of the norm ops: parameters, and the destination of those that write into a buffer."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.checks import check_count, check_shape
from ...core.errors import InvalidInput
from ...core.overlap import check_destination
from ...temporal.frame_buffer import FrameBuffer

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


def destination(op: str, buffer: object, x: Tensor, dtype: torch.dtype, **reads: Tensor | None) -> Tensor:
    """Return the body of a buffer that the result for `x` may be written into.

    Args:
        op: Name of the op, with its trailing underscore.
        buffer: What was given.
        x: The frames.
        dtype: Of the result.
        **reads: Every other tensor that the op reads.

    Raises:
        InvalidInput: It is no `FrameBuffer`, has another shape, dtype or device, overlaps itself or what is
            read, unless it is `x` itself, or a gradient would be lost.
    """
    if not isinstance(buffer, FrameBuffer):
        raise InvalidInput(
            f"{op}: got a {type(buffer).__name__}, expected a FrameBuffer to write into; {op[:-1]} returns a "
            "tensor"
        )
    out = buffer.body
    check_shape(op, "the body of the buffer", out, x.shape, "the shape of x")
    if (out.dtype, out.device) != (dtype, x.device):
        raise InvalidInput(
            f"{op}: the buffer is {out.dtype} on {out.device}, expected {dtype} on {x.device}, as the "
            "result is"
        )
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (buffer.storage, x, *reads.values())
    ):
        raise InvalidInput(
            f"{op}: got a tensor that requires a gradient, expected none, because writing in place would "
            f"lose it; use {op[:-1]}"
        )
    check_destination(op, "the body of the buffer", out, {"x": x, **reads}, may_be_out=("x",))
    return out


def as_autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors as autocast hands them to a norm: half precision as float32 on a GPU.

    `group_norm` is in the list of operators that run in float32 on CUDA, and in no list on a CPU.
    """
    x = tensors[0]
    if not isinstance(x, Tensor) or x.is_meta or x.device.type == "cpu":
        return tensors
    if not torch.is_autocast_enabled(x.device.type):
        return tensors
    return tuple(t.float() if isinstance(t, Tensor) and t.dtype in HALVES else t for t in tensors)
