"""Halving of frames by a convolution of stride 2, and of their number by averaging pairs."""

from __future__ import annotations

from torch import Tensor

from ...core.checks import check_float, check_like, check_operands, check_shape, check_video
from ...core.errors import InvalidInput
from ...core.op import Op
from ...core.precision import autocast_dtype, check_no_autocast
from ...temporal.frame_buffer import FrameBuffer
from .backends import aten, cpu, triton
from .measurements import measured
from .reference import downsample_conv_reference, downsample_conv_vjp
from .spec import DownsampleArgs


def downsample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    compress_time: bool = False,
    out: Tensor | FrameBuffer | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor | FrameBuffer:
    """Convolve every frame with stride 2, zeros below and to the right; average pairs of frames before.

    CogVideoX's downsampler, and the spatial one of Wan (without `compress_time`).

    Args:
        x: Frames, shape (B, Cin, T, H, W), H and W at least 2, any strides; float32, bfloat16 or float16
            (float64 in the reference and aten).
        weight: Shape (Cout, Cin, 1, 3, 3), dtype of `x`.
        bias: Shape (Cout,), dtype of `x`.
        compress_time: Average frames in pairs, rounded to the dtype of `x`; of an odd number the first one
            stays as it is.
        out: Destination of the output: a tensor of its shape and dtype, any strides, or a `FrameBuffer` with
            such a body. It must not share memory with what is read.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier "exact" or "high"; default: `use_precision()`, the environment, "high".

    Returns:
        Shape (B, Cout, T', H // 2, W // 2), T' = T or (T + 1) // 2; channels_last_3d if `x` or `weight` is,
        else contiguous. Under `torch.autocast` the dtype that `torch.nn.functional.conv3d` gives; frames are
        averaged in that dtype, too. With `out` that, as it was given.

    Raises:
        InvalidInput: Shapes or dtypes are invalid; `out` overlaps itself or what is read, a gradient would be
            lost in it, or autocast would change the dtype.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    y = _DOWNSAMPLE.call((x, weight, bias), (compress_time,), out, backend, precision, cast=_cast)
    return y if out is None else out


def _cast(call: DownsampleArgs, out: Tensor | None) -> DownsampleArgs:
    """Return the record as autocast hands it over."""
    check_operands(_NAME, *call[:3])
    cast = autocast_dtype(call.x)
    if out is not None:
        check_no_autocast(_NAME, call.x)
    if cast is None or out is not None:
        return call
    return DownsampleArgs(*(None if t is None else t.to(cast) for t in call[:3]), call.compress_time)


def _arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    compress_time: bool = False,
    out: Tensor | FrameBuffer | None = None,
) -> tuple[DownsampleArgs, Tensor | None]:
    """Check the public function's arguments; return the record and where the result goes."""
    args = _checked(DownsampleArgs(x, weight, bias, compress_time))
    return args, _DOWNSAMPLE.check_out(out, args)


def _checked(call: DownsampleArgs) -> DownsampleArgs:
    """Check everything; return the record that backends take."""
    x, weight, bias, compress_time = call
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
    return call._replace(compress_time=bool(compress_time))


_NAME = "downsample_conv"
_DOWNSAMPLE = Op(
    _NAME,
    args=DownsampleArgs,
    reference=downsample_conv_reference,
    check=_checked,
    prepare=_arguments,
    backends=(aten.DOWNSAMPLE, cpu.DOWNSAMPLE, triton.DOWNSAMPLE),
    measured=measured,
    layout=("x", "weight"),
    vjp=downsample_conv_vjp,
    saves=("x", "weight"),
)
