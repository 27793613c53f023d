"""Nearest-neighbour upsampling and the causal convolution behind it, as one op on the small frames."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...core.checks import (
    check_choice,
    check_float,
    check_like,
    check_operands,
    check_shape,
    check_video,
    int_tuple,
)
from ...core.errors import InvalidInput
from ...core.op import Op
from ...core.precision import autocast_dtype, check_no_autocast
from ...temporal.frame_buffer import FrameBuffer
from ...temporal.state import final_state
from ..causal_conv3d.measurements import packed_or_aten
from ..causal_pad3d import check_state
from .backends import aten, cpu, triton
from .measurements import measured
from .reference import upsample_conv_reference, upsample_conv_vjp
from .spec import SCALES, SPATIAL_MODES, TEMPORAL_MODES, UpsampleArgs, state_frames


def upsample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: int | Sequence[int] = (1, 2, 2),
    first_chunk: bool = True,
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    out: Tensor | FrameBuffer | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor | FrameBuffer | tuple[Tensor | FrameBuffer, Tensor]:
    """Repeat pixels and frames, then convolve with a kernel that sees past frames only.

    A pixel that the kernel would see twice is multiplied once, by the sum of two weights, so a kernel of
    three takes two multiplications along every doubled axis: 4 of 9 in space, 8 of 27 in time and space.

    CogVideoX's `compress_time` upsampler doubles frames and convolves each on its own (kT = 1): with the
    scale (1, 2, 2) a caller gets every frame once and knows that it stands for two, as `scale=(2, 1, 1)` of
    the next convolution then says; with (2, 2, 2) they are repeated here. HunyuanVideo's upsampler is the
    scale (2, 2, 2) with kT = 3 and `spatial_mode="replicate"`.

    Args:
        x: Frames, shape (B, Cin, T, H, W), any strides; float32, bfloat16 or float16 (float64 in the
            reference and aten).
        weight: Shape (Cout, Cin, kT, 3, 3), kT 1 or 3, dtype of `x`.
        bias: Shape (Cout,), dtype of `x`.
        scale: (1, 2, 2), (2, 2, 2), or (2, 1, 1): frames that come in equal pairs, given once.
        first_chunk: The first frame is the video's first one, which time-doubling leaves single. Does not
            matter where the scale leaves time alone.
        temporal_mode: What stands before a first chunk: "replicate" (its first frame) or "zeros"; frames
            that are doubled and then seen by kT = 3 know "replicate" alone.
        spatial_mode: "zeros" or "replicate", by one pixel of the upsampled frames.
        initial_state: The P frames before this chunk at the size of `x`, shape (B, Cin, P, H, W):
            P = kT - 1, or, with kT = 3 and doubled frames, the one frame before, which stands for two.
        return_final_state: Return the last P frames as well.
        out: Destination of the output: a tensor of its shape and dtype, any strides, or a `FrameBuffer` with
            such a body. It must not share memory with what is read.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier "exact" or "high"; default: `use_precision()`, the environment, "high".

    Returns:
        The output, shape (B, Cout, T', scale_h * H, scale_w * W), T' = T, or 2 T, or 2 T - 1 where the first
        frame stays single; channels_last_3d if `x` or `weight` is, else contiguous. With
        `return_final_state` a tuple of it and the state, which owns its memory. Under `torch.autocast` the
        dtypes are those that `torch.nn.functional.conv3d` gives. With `out` it stands for the output, as it
        was given.

    Raises:
        InvalidInput: Shapes, dtypes or options are invalid; `out` overlaps itself or what is read, a gradient
            would be lost in it, or autocast would change the dtype.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    tensors, to = (x, weight, bias, initial_state), getattr(out, "body", out)
    options = (scale, first_chunk, temporal_mode, spatial_mode)
    bound = _UPSAMPLE.bindings.find(tensors, options, to, backend, precision)
    if bound is None:
        y = _watched(UpsampleArgs(*tensors, *options), to, backend, precision)
    else:
        y = bound.run(tensors, to)
    y = y if out is None else out
    if not return_final_state:
        return y
    frames = state_frames(weight.shape[2], int_tuple(_NAME, "scale", scale, 3))
    return y, final_state(x, frames, initial_state=initial_state, temporal_mode=temporal_mode)


def _watched(
    call: UpsampleArgs, out: Tensor | None, backend: str | None, precision: str | None
) -> Tensor | None:
    """Call the operator where a compiler, autograd, autocast or a mode sees it."""
    check_operands(_NAME, *call[:4])
    cast = autocast_dtype(call.x)
    backend = packed_or_aten(call.weight, backend, cast is not None and call.weight.dtype != cast)
    if out is not None:
        check_no_autocast(_NAME, call.x)
    elif cast is not None:
        call = UpsampleArgs(*(None if t is None else t.to(cast) for t in call[:4]), *call[4:])
    args = _checked(call)
    return _UPSAMPLE(args, _UPSAMPLE.check_out(out, args), backend=backend, precision=precision)


def _arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: int | Sequence[int] = (1, 2, 2),
    first_chunk: bool = True,
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    out: Tensor | FrameBuffer | None = None,
) -> tuple[UpsampleArgs, Tensor | None]:
    """Check the public function's arguments; return the record and where the result goes."""
    call = UpsampleArgs(x, weight, bias, initial_state, scale, first_chunk, temporal_mode, spatial_mode)
    args = _checked(call)
    if out is not None:
        check_no_autocast(_NAME, x)
    return args, _UPSAMPLE.check_out(out, args)


def _checked(call: UpsampleArgs) -> UpsampleArgs:
    """Check everything; return the record that backends take."""
    x, weight, bias, initial_state, scale, first_chunk, temporal_mode, spatial_mode = call
    check_video(_NAME, "x", x)
    check_float(_NAME, "x", x)
    check_video(_NAME, "weight", weight)
    check_like(_NAME, "weight", weight, "x", x)
    check_choice(_NAME, "temporal_mode", temporal_mode, TEMPORAL_MODES)
    check_choice(_NAME, "spatial_mode", spatial_mode, SPATIAL_MODES)
    scale = int_tuple(_NAME, "scale", scale, 3)
    if scale not in SCALES:
        raise InvalidInput(f"{_NAME}: scale is {scale}, expected one of {', '.join(map(str, SCALES))}")
    out_channels, in_channels, *kernel_size = weight.shape
    if x.shape[1] != in_channels:
        raise InvalidInput(
            f"{_NAME}: x has {x.shape[1]} channels and weight, shape {tuple(weight.shape)}, expects "
            f"{in_channels}"
        )
    if kernel_size not in ([1, 3, 3], [3, 3, 3]):
        raise InvalidInput(f"{_NAME}: kernel size is {tuple(kernel_size)}, expected (1, 3, 3) or (3, 3, 3)")
    if bias is not None:
        check_shape(_NAME, "bias", bias, (out_channels,), "(Cout,)")
        check_like(_NAME, "bias", bias, "x", x)
    if scale[0] == 2 and kernel_size[0] == 3 and temporal_mode != "replicate":
        raise InvalidInput(
            f"{_NAME}: temporal_mode is {temporal_mode!r} with scale {scale} and a kernel of three frames, "
            "expected 'replicate', with which the frames before a single first one are equal to it"
        )
    check_state(_NAME, initial_state, x, state_frames(kernel_size[0], scale))
    if initial_state is not None and first_chunk and scale[0] == 2:
        raise InvalidInput(
            f"{_NAME}: got an initial_state and first_chunk=True, expected no state before the first chunk, "
            "or first_chunk=False"
        )
    return call._replace(scale=scale, first_chunk=bool(first_chunk))


_NAME = "upsample_conv"
_UPSAMPLE = Op(
    _NAME,
    args=UpsampleArgs,
    reference=upsample_conv_reference,
    check=_checked,
    prepare=_arguments,
    backends=(aten.UPSAMPLE, cpu.UPSAMPLE, triton.UPSAMPLE),
    measured=measured,
    layout=("x", "weight"),
    vjp=upsample_conv_vjp,
    saves=("x", "weight", "initial_state"),
)
