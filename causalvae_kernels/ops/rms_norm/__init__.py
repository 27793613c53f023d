"""RMS norm: each pixel is normalised over its channels, then scaled, with SiLU behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.checks import check_float, check_tensor, check_video
from ...core.op import Op
from ...temporal.frame_buffer import FrameBuffer
from ..norms.checks import check_activation, check_eps, check_parameter, check_same_dtype
from ..norms.measurements import RMS_NORM
from .backends import aten, cpu, triton
from .reference import rms_norm_reference, rms_norm_vjp
from .spec import RmsNormArgs


def rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 0.0,
    activation: str | None = "silu",
    out: Tensor | FrameBuffer | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor | FrameBuffer:
    """Divide each pixel by the norm of its channels, scale by sqrt(C) and `weight`, then apply SiLU.

    n = x / max(r, 1e-12), r = sqrt(|x|^2 + C * eps) over the channels of a pixel, in float32 at least and
    rounded to the dtype of `x`; y = n * sqrt(C) * weight + bias, result = y / (1 + exp(-y)). Without `eps`
    this is diffusers' `WanRMS_norm` with its activation; with it n * sqrt(C) = x / sqrt(mean(x^2) + eps) is
    the RMS norm of LTX.
    Pixels are independent, so any cut of a video into chunks gives the same. x is read once and written once.

    Args:
        x: Frames, shape (B, C, T, H, W), any strides; float32, bfloat16, float16 (float64 in the reference
            and aten).
        weight: Shape (C,), or (C, 1, 1, 1) or (C, 1, 1) as `WanRMS_norm` keeps its gamma; dtype of `x`, or
            float32 beside half precision.
        bias: Shape and dtype of `weight`.
        eps: Added to the mean of the squares.
        activation: "silu", or None for y itself.
        out: Destination of the result: a tensor of its shape and dtype, any strides, or a `FrameBuffer` with
            such a body, whose border is not changed. It may be `x` itself, and must not share memory with
            anything else that is read.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier "exact" or "high"; default: `use_precision()`, the environment, "high".

    Returns:
        `out` as it was given, or a tensor: shape of `x`, the dtype that `x` and `weight` promote to;
        channels_last_3d if `x` is, else contiguous.

    Raises:
        InvalidInput: Shapes or dtypes are invalid, `out` shares memory with what is read, or a gradient would
            be lost.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    tensors = (x, _flat(weight), _flat(bias))
    result = _NORM.call(tensors, (eps, activation), out, backend, precision)
    return result if out is None else out


def _prepare(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 0.0,
    activation: str | None = "silu",
    out: Tensor | FrameBuffer | None = None,
) -> tuple[RmsNormArgs, Tensor | None]:
    args = _checked(RmsNormArgs(x, _flat(weight), _flat(bias), eps, activation))
    return args, _NORM.check_out(out, args)


def _checked(call: RmsNormArgs) -> RmsNormArgs:
    """Check the arguments as they were given, `silu` being the activation; return those of the operator."""
    x, weight, bias, eps, activation = call
    check_video(_NAME, "x", x)
    check_float(_NAME, "x", x)
    check_tensor(_NAME, "weight", weight, "(C,) or (C, 1, 1, 1)")
    check_parameter(_NAME, "weight", weight, x)
    check_parameter(_NAME, "bias", bias, x)
    check_same_dtype(_NAME, "weight", weight, "bias", bias)
    return RmsNormArgs(x, weight, bias, check_eps(_NAME, eps), check_activation(_NAME, activation))


def _flat(parameter: Tensor | None) -> Tensor | None:
    """Return (C, 1, 1, 1) as (C,), and what is no such tensor as it is."""
    if isinstance(parameter, Tensor) and parameter.layout is torch.strided and not parameter.is_nested:
        if parameter.dim() > 1 and parameter.numel() == parameter.shape[0]:
            return parameter.flatten()
    return parameter


_NAME = "rms_norm"
_NORM = Op(
    _NAME,
    args=RmsNormArgs,
    reference=rms_norm_reference,
    check=_checked,
    prepare=_prepare,
    backends=(aten.NORM, cpu.NORM, triton.NORM),
    measured=RMS_NORM.measured,
    layout=("x",),
    may_be_out=("x",),
    vjp=rms_norm_vjp,
    saves=("x", "weight", "bias"),
)
