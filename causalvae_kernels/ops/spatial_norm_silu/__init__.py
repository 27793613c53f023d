"""CogVideoX's spatial norm: a group norm whose result is scaled and shifted pixel by pixel, and SiLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.checks import check_float, check_shape, check_video
from ...core.errors import InvalidInput
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
from ..norms.measured import SPATIAL_NORM
from . import aten, cpu, triton
from .reference import spatial_norm_silu__reference, spatial_norm_silu_reference, spatial_norm_silu_vjp
from .spec import has_lone_first


def spatial_norm_silu(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    silu: bool = True,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor:
    """Normalise as `group_norm_silu` does, scale and shift each pixel, then apply SiLU.

    y = group_norm(x) * up(scale) + up(shift), result = y / (1 + exp(-y)). `up` repeats by nearest neighbour
    to the frames and pixels of `x`; with an odd number of frames above one, frame 0 takes frame 0 of `scale`
    and `shift`, and the other frames take the others. They are what `conv_y` and `conv_b` of diffusers'
    `CogVideoXSpatialNorm3D` give at latent resolution. Twice x is read and once written.

    Args:
        x: Frames, shape (B, C, T, H, W), any strides; float32, bfloat16, float16 (float64 in the reference
            and aten).
        scale: Shape (B, C, t, h, w), any strides; a dtype of those.
        shift: Shape and dtype of `scale`.
        num_groups: A divisor of C.
        weight: Shape (C,), dtype of `x`, or float32 beside half precision.
        bias: Shape (C,), dtype of `weight`.
        eps: Added to the variance.
        silu: Whether to apply SiLU.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier "exact", "high" or "fast"; default: `use_precision()`, the environment, "high".

    Returns:
        Shape of `x`, the dtype that `x` and `scale` promote to; channels_last_3d if `x` is, else contiguous.
        Under `torch.autocast` `x` counts as `group_norm` would return it: float32 on a GPU.

    Raises:
        InvalidInput: Shapes, dtypes or numbers do not fit.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    arguments = _arguments(x, scale, shift, num_groups, weight, bias, eps=eps, silu=silu)
    return _NORM(*arguments, backend=backend, precision=precision)


def spatial_norm_silu_(
    buffer: FrameBuffer,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    silu: bool = True,
    backend: str | None = None,
    precision: str | None = None,
) -> None:
    """Write `spatial_norm_silu` of `x` into the body of a `FrameBuffer`; its border is left as it is.

    Args:
        buffer: Where the result goes: a body of the shape of `x` and the dtype of the result, of which `x`
            itself may be the body.
        x: As in `spatial_norm_silu`.
        scale: As in `spatial_norm_silu`.
        shift: As in `spatial_norm_silu`.
        num_groups: As in `spatial_norm_silu`.
        weight: As in `spatial_norm_silu`.
        bias: As in `spatial_norm_silu`.
        eps: As in `spatial_norm_silu`.
        silu: As in `spatial_norm_silu`.
        backend: As in `spatial_norm_silu`.
        precision: As in `spatial_norm_silu`.

    Raises:
        InvalidInput: Shapes, dtypes or numbers do not fit, something that is read lies under the body, or a
            gradient would be lost.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    arguments = _into_arguments(buffer, x, scale, shift, num_groups, weight, bias, eps=eps, silu=silu)
    _NORM_(*arguments, backend=backend, precision=precision)


def _arguments(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    silu: bool = True,
) -> tuple[Any, ...]:
    x, weight, bias = as_autocast(x, weight, bias)
    return _checked(_NAME, x, scale, shift, weight, bias, num_groups, eps, silu)


def _into_arguments(
    buffer: FrameBuffer,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    silu: bool = True,
) -> tuple[Any, ...]:
    op = f"{_NAME}_"
    arguments = _checked(op, x, scale, shift, weight, bias, num_groups, eps, silu)
    dtype = torch.promote_types(x.dtype, scale.dtype)
    reads = {"scale": scale, "shift": shift, "weight": weight, "bias": bias}
    return destination(op, buffer, x, dtype, **reads), *arguments


def _checked(
    op: str,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> tuple[Any, ...]:
    check_video(op, "x", x)
    check_float(op, "x", x)
    check_video(op, "scale", scale)
    check_float(op, "scale", scale)
    batch, channels, frames = x.shape[:3]
    check_shape(op, "scale", scale, (batch, channels, *scale.shape[2:]), "(B, C, t, h, w)")
    check_shape(op, "shift", shift, scale.shape, "the shape of scale")
    check_same_dtype(op, "scale", scale, "shift", shift)
    for name, small in (("scale", scale), ("shift", shift)):
        if small.device != x.device:
            raise InvalidInput(f"{op}: {name} is on {small.device} and x on {x.device}, expected one device")
    if has_lone_first(frames) and scale.shape[2] < 2:
        raise InvalidInput(
            f"{op}: x has {frames} frames and scale has 1, expected at least 2: one for the first frame of "
            "an odd number, and one for the others"
        )
    groups = check_groups(op, x, num_groups)
    check_parameter(op, "weight", weight, x)
    check_parameter(op, "bias", bias, x)
    check_same_dtype(op, "weight", weight, "bias", bias)
    return x, scale, shift, weight, bias, groups, check_eps(op, eps), bool(silu)


_NAME = "spatial_norm_silu"
_NORM = Op(
    _NAME,
    reference=spatial_norm_silu_reference,
    prepare=_arguments,
    backends=(aten.NORM, cpu.NORM, triton.NORM),
    order=("aten", "reference"),
    measured=SPATIAL_NORM.fresh,
    layout=("x",),
    vjp=spatial_norm_silu_vjp,
    saves=("x", "scale", "shift", "weight", "bias"),
)
_NORM_ = Op(
    f"{_NAME}_",
    reference=spatial_norm_silu__reference,
    prepare=_into_arguments,
    backends=(aten.NORM_, cpu.NORM_, triton.NORM_),
    order=("aten", "reference"),
    measured=SPATIAL_NORM.into,
    mutates=("out",),
)
