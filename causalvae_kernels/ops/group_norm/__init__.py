"""Group norm of video over channels of a group and all frames and pixels, with SiLU behind it."""

from __future__ import annotations

from torch import Tensor

from ...core.checks import check_float, check_video
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
from ..norms.measurements import GROUP_NORM
from .backends import aten, cpu, triton
from .reference import group_norm_reference, group_norm_vjp
from .spec import GroupNormArgs


def group_norm(
    x: Tensor,
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
    """Normalise each group of channels over all its frames and pixels, then apply SiLU.

    y = (x - mean) / sqrt(var + eps) * weight + bias, result = y / (1 + exp(-y)), with mean and (biased)
    variance over (C / num_groups, T, H, W) of the given tensor: other chunks of a video give other values. x
    is read twice and written once, 3 times its bytes.

    Args:
        x: Frames, shape (B, C, T, H, W), any strides; float32, bfloat16, float16 (float64 in the reference
            and aten).
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
        `out` as it was given, or a tensor: shape and dtype of `x`; channels_last_3d if `x` is, else
        contiguous. Under `torch.autocast` its dtype is that of `torch.nn.functional.group_norm`: float32 on a
        GPU, that of `x` on a CPU.

    Raises:
        InvalidInput: Shapes, dtypes or numbers are invalid, `out` shares memory with what is read, or a
            gradient would be lost.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    options = (num_groups, eps, activation)
    result = _NORM.call((x, weight, bias), options, out, backend, precision, cast=as_autocast)
    return result if out is None else out


def _prepare(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str | None = "silu",
    out: Tensor | FrameBuffer | None = None,
) -> tuple[GroupNormArgs, Tensor | None]:
    call = GroupNormArgs(x, weight, bias, num_groups, eps, activation)
    args = _checked(as_autocast(call, out))
    return args, _NORM.check_out(out, args)


def _checked(call: GroupNormArgs) -> GroupNormArgs:
    """Check the arguments as they were given, `silu` being the activation; return those of the operator."""
    x, weight, bias, num_groups, eps, activation = call
    check_video(_NAME, "x", x)
    check_float(_NAME, "x", x)
    groups = check_groups(_NAME, x, num_groups)
    check_parameter(_NAME, "weight", weight, x)
    check_parameter(_NAME, "bias", bias, x)
    check_same_dtype(_NAME, "weight", weight, "bias", bias)
    silu = check_activation(_NAME, activation)
    return GroupNormArgs(x, weight, bias, groups, check_eps(_NAME, eps), silu)


_NAME = "group_norm"
_NORM = Op(
    _NAME,
    args=GroupNormArgs,
    reference=group_norm_reference,
    check=_checked,
    prepare=_prepare,
    backends=(aten.NORM, cpu.NORM, triton.NORM),
    measured=GROUP_NORM.measured,
    layout=("x",),
    may_be_out=("x",),
    vjp=group_norm_vjp,
    saves=("x", "weight", "bias"),
)
