"""CogVideoX's spatial norm: a group norm whose result is scaled and shifted pixel by pixel, and SiLU."""

from __future__ import annotations

from torch import Tensor

from ...core.checks import check_float, check_shape, check_video
from ...core.errors import InvalidInput
from ...core.op import Op
from ...temporal.frame_buffer import FrameBuffer
from ..norms.checks import (
    as_autocast,
    check_activation,
    check_eps,
    check_groups,
    check_parameter,
    check_same_dtype,
)
from ..norms.measurements import SPATIAL_NORM
from .backends import aten, cpu, triton
from .reference import spatial_norm_reference, spatial_norm_vjp
from .spec import SpatialNormArgs, has_lone_first


def spatial_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str | None = "silu",
    out: Tensor | FrameBuffer | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor | FrameBuffer:
    """Normalise as `group_norm` does, scale and shift each pixel, then apply SiLU.

    y = group_norm(x) * up(scale) + up(shift), result = y / (1 + exp(-y)). `up` repeats by nearest neighbour
    to the frames and pixels of `x`; with an odd number of frames above one, frame 0 takes frame 0 of `scale`
    and `shift`, and the other frames take the others. They are what `conv_y` and `conv_b` of diffusers'
    `CogVideoXSpatialNorm3D` give at latent resolution. x is read twice and written once.

    Args:
        x: Frames, shape (B, C, T, H, W), any strides; float32, bfloat16, float16 (float64 in the reference
            and aten).
        scale: Shape (B, C, t, h, w), any strides; a dtype of those.
        shift: Shape and dtype of `scale`.
        num_groups: A divisor of C.
        weight: Shape (C,), dtype of `x`, or float32 beside half precision.
        bias: Shape (C,), dtype of `weight`.
        eps: Added to the variance.
        activation: "silu", or None for y itself.
        out: Destination of the result: a tensor of its shape and dtype, any strides, or a `FrameBuffer` with
            such a body, whose border is not changed. It may be `x` itself, and must not share memory with
            anything else that is read.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier "exact" or "high"; default: `use_precision()`, the environment, "high".

    Returns:
        `out` as it was given, or a tensor: shape of `x`, the dtype that `x` and `scale` promote to;
        channels_last_3d if `x` is, else contiguous. Under `torch.autocast` `x` counts, without `out`, as
        `torch.nn.functional.group_norm` would return it: float32 on a GPU.

    Raises:
        InvalidInput: Shapes, dtypes or numbers are invalid, `out` shares memory with what is read, or a
            gradient would be lost.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    tensors, options = (x, scale, shift, weight, bias), (num_groups, eps, activation)
    result = _NORM.call(tensors, options, out, backend, precision, cast=as_autocast)
    return result if out is None else out


def _prepare(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str | None = "silu",
    out: Tensor | FrameBuffer | None = None,
) -> tuple[SpatialNormArgs, Tensor | None]:
    call = SpatialNormArgs(x, scale, shift, weight, bias, num_groups, eps, activation)
    args = _checked(as_autocast(call, out))
    return args, _NORM.check_out(out, args)


def _checked(call: SpatialNormArgs) -> SpatialNormArgs:
    """Check the arguments as they were given, `silu` being the activation; return those of the operator."""
    x, scale, shift, weight, bias, num_groups, eps, activation = call
    check_video(_NAME, "x", x)
    check_float(_NAME, "x", x)
    check_video(_NAME, "scale", scale)
    check_float(_NAME, "scale", scale)
    batch, channels, frames = x.shape[:3]
    check_shape(_NAME, "scale", scale, (batch, channels, *scale.shape[2:]), "(B, C, t, h, w)")
    check_shape(_NAME, "shift", shift, scale.shape, "the shape of scale")
    check_same_dtype(_NAME, "scale", scale, "shift", shift)
    for name, small in (("scale", scale), ("shift", shift)):
        if small.device != x.device:
            raise InvalidInput(
                f"{_NAME}: {name} is on {small.device} and x on {x.device}, expected one device"
            )
    if has_lone_first(frames) and scale.shape[2] < 2:
        raise InvalidInput(
            f"{_NAME}: x has {frames} frames and scale has 1, expected at least 2: one for the first frame "
            "of an odd number, and one for the others"
        )
    groups = check_groups(_NAME, x, num_groups)
    check_parameter(_NAME, "weight", weight, x)
    check_parameter(_NAME, "bias", bias, x)
    check_same_dtype(_NAME, "weight", weight, "bias", bias)
    silu = check_activation(_NAME, activation)
    return SpatialNormArgs(x, scale, shift, weight, bias, groups, check_eps(_NAME, eps), silu)


_NAME = "spatial_norm"
_NORM = Op(
    _NAME,
    args=SpatialNormArgs,
    reference=spatial_norm_reference,
    check=_checked,
    prepare=_prepare,
    backends=(aten.NORM, cpu.NORM, triton.NORM),
    measured=SPATIAL_NORM.measured,
    layout=("x",),
    may_be_out=("x",),
    vjp=spatial_norm_vjp,
    saves=("x", "scale", "shift", "weight", "bias"),
)
