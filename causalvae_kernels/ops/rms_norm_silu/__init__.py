"""RMS norm: each pixel is normalised over its channels, then scaled, with SiLU behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.checks import check_float, check_tensor, check_video
from ...core.op import Op
from ...temporal.frame_buffer import FrameBuffer
from ..norms.checks import check_eps, check_parameter, check_same_dtype, destination
from ..norms.measured import RMS_NORM
from . import aten, cpu, triton
from .reference import rms_norm_silu__reference, rms_norm_silu_reference, rms_norm_silu_vjp


def rms_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 0.0,
    silu: bool = True,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor:
    """Divide each pixel by the norm of its channels, scale by sqrt(C) and `weight`, then apply SiLU.

    n = x / max(r, 1e-12), r = sqrt(|x|^2 + C * eps) over the channels of a pixel, in float32 at least and
    rounded to the dtype of `x`; y = n * sqrt(C) * weight + bias, result = y / (1 + exp(-y)). Without `eps`
    this is diffusers' `WanRMS_norm` with its activation; with it n * sqrt(C) = x / sqrt(mean(x^2) + eps) is
    the RMS norm of LTX.
    No pixel looks at another, so any cut of a video gives the same. Once x is read and once written.

    Args:
        x: Frames, shape (B, C, T, H, W), any strides; float32, bfloat16, float16 (float64 in the reference
            and aten).
        weight: Shape (C,), or (C, 1, 1, 1) or (C, 1, 1) as `WanRMS_norm` keeps its gamma; dtype of `x`, or
            float32 beside half precision.
        bias: Shape and dtype of `weight`.
        eps: Added to the mean of the squares.
        silu: Whether to apply SiLU.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier "exact", "high" or "fast"; default: `use_precision()`, the environment, "high".

    Returns:
        Shape of `x`, the dtype that `x` and `weight` promote to; channels_last_3d if `x` is, else contiguous.

    Raises:
        InvalidInput: Shapes or dtypes do not fit.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    return _NORM(*_arguments(x, weight, bias, eps=eps, silu=silu), backend=backend, precision=precision)


def rms_norm_silu_(
    buffer: FrameBuffer,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 0.0,
    silu: bool = True,
    backend: str | None = None,
    precision: str | None = None,
) -> None:
    """Write `rms_norm_silu` of `x` into the body of a `FrameBuffer`; its border is left as it is.

    Args:
        buffer: Where the result goes: a body of the shape of `x` and the dtype of the result, of which `x`
            itself may be the body.
        x: As in `rms_norm_silu`.
        weight: As in `rms_norm_silu`.
        bias: As in `rms_norm_silu`.
        eps: As in `rms_norm_silu`.
        silu: As in `rms_norm_silu`.
        backend: As in `rms_norm_silu`.
        precision: As in `rms_norm_silu`.

    Raises:
        InvalidInput: Shapes or dtypes do not fit, something that is read lies under the body, or a gradient
            would be lost.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    arguments = _into_arguments(buffer, x, weight, bias, eps=eps, silu=silu)
    _NORM_(*arguments, backend=backend, precision=precision)


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 0.0, silu: bool = True
) -> tuple[Any, ...]:
    return _checked(_NAME, x, weight, bias, eps, silu)


def _into_arguments(
    buffer: FrameBuffer,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 0.0,
    silu: bool = True,
) -> tuple[Any, ...]:
    op = f"{_NAME}_"
    arguments = _checked(op, x, weight, bias, eps, silu)
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return destination(op, buffer, x, dtype, weight=weight, bias=bias), *arguments


def _checked(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, silu: bool
) -> tuple[Any, ...]:
    check_video(op, "x", x)
    check_float(op, "x", x)
    weight, bias = _flat(op, "weight", weight), None if bias is None else _flat(op, "bias", bias)
    check_parameter(op, "weight", weight, x)
    check_parameter(op, "bias", bias, x)
    check_same_dtype(op, "weight", weight, "bias", bias)
    return x, weight, bias, check_eps(op, eps), bool(silu)


def _flat(op: str, name: str, parameter: Tensor) -> Tensor:
    """Return (C, 1, 1, 1) as (C,)."""
    check_tensor(op, name, parameter, "(C,) or (C, 1, 1, 1)")
    if parameter.dim() > 1 and parameter.numel() == parameter.shape[0]:
        return parameter.flatten()
    return parameter


_NAME = "rms_norm_silu"
_NORM = Op(
    _NAME,
    reference=rms_norm_silu_reference,
    prepare=_arguments,
    backends=(aten.NORM, cpu.NORM, triton.NORM),
    order=("aten", "reference"),
    measured=RMS_NORM.fresh,
    layout=("x",),
    vjp=rms_norm_silu_vjp,
    saves=("x", "weight", "bias"),
)
_NORM_ = Op(
    f"{_NAME}_",
    reference=rms_norm_silu__reference,
    prepare=_into_arguments,
    backends=(aten.NORM_, cpu.NORM_, triton.NORM_),
    order=("aten", "reference"),
    measured=RMS_NORM.into,
    mutates=("out",),
)
