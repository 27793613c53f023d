"""Group norm of video over channels of a group and all frames and pixels, with SiLU behind it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.checks import check_float, check_video
from ...core.op import Op
from ...temporal.frame_buffer import FrameBuffer
from ..norms.checks import (
    as_autocast,
    check_eps,
    check_groups,
    check_parameter,
    check_same_dtype,
    destination,
)
from ..norms.measured import GROUP_NORM
from . import aten, cpu, triton
from .reference import group_norm_silu__reference, group_norm_silu_reference, group_norm_silu_vjp


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    silu: bool = True,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor:
    """Normalise each group of channels over all its frames and pixels, then apply SiLU.

    y = (x - mean) / sqrt(var + eps) * weight + bias, result = y / (1 + exp(-y)), with mean and (biased)
    variance over (C / num_groups, T, H, W) of the tensor that is given: another cut of a video into chunks
    gives other values. Twice x is read and once written, 3 times its bytes.

    Args:
        x: Frames, shape (B, C, T, H, W), any strides; float32, bfloat16, float16 (float64 in the reference
            and aten).
        num_groups: A divisor of C.
        weight: Shape (C,), dtype of `x`, or float32 beside half precision.
        bias: Shape (C,), dtype of `weight`.
        eps: Added to the variance.
        silu: Whether to apply SiLU.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier "exact", "high" or "fast"; default: `use_precision()`, the environment, "high".

    Returns:
        Shape and dtype of `x`; channels_last_3d if `x` is, else contiguous. Under `torch.autocast` the dtype
        is that of `torch.nn.functional.group_norm`: float32 on a GPU, that of `x` on a CPU.

    Raises:
        InvalidInput: Shapes, dtypes or numbers do not fit.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    arguments = _arguments(x, num_groups, weight, bias, eps=eps, silu=silu)
    return _NORM(*arguments, backend=backend, precision=precision)


def group_norm_silu_(
    buffer: FrameBuffer,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    silu: bool = True,
    backend: str | None = None,
    precision: str | None = None,
) -> None:
    """Write `group_norm_silu` of `x` into the body of a `FrameBuffer`; its border is left as it is.

    Args:
        buffer: Where the result goes: a body of the shape and dtype of `x`, of which `x` itself may be the
            body.
        x: As in `group_norm_silu`.
        num_groups: As in `group_norm_silu`.
        weight: As in `group_norm_silu`.
        bias: As in `group_norm_silu`.
        eps: As in `group_norm_silu`.
        silu: As in `group_norm_silu`.
        backend: As in `group_norm_silu`.
        precision: As in `group_norm_silu`.

    Raises:
        InvalidInput: Shapes, dtypes or numbers do not fit, `x` lies in part under the body, or a gradient
            would be lost.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    arguments = _into_arguments(buffer, x, num_groups, weight, bias, eps=eps, silu=silu)
    _NORM_(*arguments, backend=backend, precision=precision)


def _arguments(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    silu: bool = True,
) -> tuple[Any, ...]:
    return _checked(_NAME, *as_autocast(x, weight, bias), num_groups, eps, silu)


def _into_arguments(
    buffer: FrameBuffer,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    silu: bool = True,
) -> tuple[Any, ...]:
    op = f"{_NAME}_"
    arguments = _checked(op, x, weight, bias, num_groups, eps, silu)
    return destination(op, buffer, x, x.dtype, weight=weight, bias=bias), *arguments


def _checked(
    op: str,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> tuple[Any, ...]:
    check_video(op, "x", x)
    check_float(op, "x", x)
    groups = check_groups(op, x, num_groups)
    check_parameter(op, "weight", weight, x)
    check_parameter(op, "bias", bias, x)
    check_same_dtype(op, "weight", weight, "bias", bias)
    return x, weight, bias, groups, check_eps(op, eps), bool(silu)


_NAME = "group_norm_silu"
_NORM = Op(
    _NAME,
    reference=group_norm_silu_reference,
    prepare=_arguments,
    backends=(aten.NORM, cpu.NORM, triton.NORM),
    order=("aten", "reference"),
    measured=GROUP_NORM.fresh,
    layout=("x",),
    vjp=group_norm_silu_vjp,
    saves=("x", "weight", "bias"),
)
_NORM_ = Op(
    f"{_NAME}_",
    reference=group_norm_silu__reference,
    prepare=_into_arguments,
    backends=(aten.NORM_, cpu.NORM_, triton.NORM_),
    order=("aten", "reference"),
    measured=GROUP_NORM.into,
    mutates=("out",),
)
