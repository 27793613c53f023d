"""Halving of frames by a convolution of stride 2, and of their number by averaging pairs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.checks import check_float, check_like, check_operands, check_shape, check_video
from ...core.errors import InvalidInput
from ...core.op import Op
from ...core.precision import autocast_dtype
from . import aten, cpu, triton
from .reference import downsample_conv_reference, downsample_conv_vjp
from .shape_class import measured


def downsample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    compress_time: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor:
    """Convolve every frame with stride 2, zeros below and to the right; average pairs of frames before.

    CogVideoX's downsampler, and the spatial one of Wan (without `compress_time`).

    Args:
        x: Frames, shape (B, Cin, T, H, W), H and W at least 2, any strides; float32, bfloat16 or float16
            (float64 in the reference and aten).
        weight: Shape (Cout, Cin, 1, 3, 3), dtype of `x`.
        bias: Shape (Cout,), dtype of `x`.
        compress_time: Average frames in pairs, rounded to the dtype of `x`; of an odd number the first one
            stays as it is.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier "exact", "high" or "fast"; default: `use_precision()`, the environment, "high".

    Returns:
        Shape (B, Cout, T', H // 2, W // 2), T' = T or (T + 1) // 2; channels_last_3d if `x` or `weight` is,
        else contiguous. Under `torch.autocast` the dtype that `torch.nn.functional.conv3d` gives; frames are
        averaged in that dtype, too.

    Raises:
        InvalidInput: Shapes or dtypes do not fit.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    check_operands(_NAME, x, weight, bias)
    cast = autocast_dtype(x)
    if cast is not None:
        x, weight, bias = x.to(cast), weight.to(cast), None if bias is None else bias.to(cast)
    arguments = _arguments(x, weight, bias, compress_time=compress_time)
    return _DOWNSAMPLE(*arguments, backend=backend, precision=precision)


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, compress_time: bool = False
) -> tuple[Any, ...]:
    """Check everything; return the operator's arguments."""
    check_video(_NAME, "x", x)
    check_float(_NAME, "x", x)
    check_video(_NAME, "weight", weight)
    check_like(_NAME, "weight", weight, "x", x)
    out_channels, in_channels, *kernel_size = weight.shape
    if x.shape[1] != in_channels:
        raise InvalidInput(
            f"{_NAME}: x has {x.shape[1]} channels and weight, shape {tuple(weight.shape)}, expects "
            f"{in_channels}"
        )
    if kernel_size != [1, 3, 3]:
        raise InvalidInput(f"{_NAME}: kernel size is {tuple(kernel_size)}, expected (1, 3, 3)")
    if min(x.shape[3:]) < 2:
        raise InvalidInput(
            f"{_NAME}: x has frames of {x.shape[3]}x{x.shape[4]}, expected a height and a width of at least 2"
        )
    if bias is not None:
        check_shape(_NAME, "bias", bias, (out_channels,), "(Cout,)")
        check_like(_NAME, "bias", bias, "x", x)
    return x, weight, bias, bool(compress_time)


_NAME = "downsample_conv"
_DOWNSAMPLE = Op(
    _NAME,
    reference=downsample_conv_reference,
    prepare=_arguments,
    backends=(aten.DOWNSAMPLE, cpu.DOWNSAMPLE, triton.DOWNSAMPLE),
    order=("aten", "reference"),
    measured=measured,
    layout=("x", "weight"),
    vjp=downsample_conv_vjp,
    saves=("x", "weight"),
)
