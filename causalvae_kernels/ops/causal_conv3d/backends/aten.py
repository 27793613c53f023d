"""Causal convolution by the framework's own, over a buffer padded in one write.

The input is copied once, into the body of a padded buffer, unless it needs no frames in front (a
`FrameBuffer`, or kT = 1): then nothing is copied. Zeros around the frames are left to the framework's
convolution. A single first frame takes a kernel of one frame, a third of the work. The bias goes
into the convolution and the residual is added in place; on a GPU both are added in one pass. The tier `exact`
does neither.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ....core.backend import Backend
from ....core.known_issues import why_conv3d_is_broken
from ...causal_pad3d.backends.aten import padded_copy
from ...causal_pad3d.spec import PadArgs
from ..framework import conv3d
from ..spec import ConvArgs, paddings
from .epilogue import add_

# Above this many input elements the call is cut along time, as diffusers' CogVideoXSafeConv3d does:
# 2 GiB of half-precision input is what cuDNN takes in one piece.
_MAX_ELEMENTS = 2**30


def _convolve(args: ConvArgs, precision: str) -> Tensor:
    x, weight, residual = args.x, args.weight, args.residual
    if _is_image(args, precision):
        weight = weight[:, :, -1:] if args.temporal_mode == "zeros" else weight.sum(dim=2, keepdim=True)
    pad = paddings(weight.shape[2:], args.dilation, args.temporal_mode, args.spatial_mode)
    if pad.copies:
        x = padded_copy(PadArgs.of_conv(x, args.initial_state, pad, args.temporal_mode))
    options = (list(args.stride), [0, *pad.implicit], list(args.dilation))
    if x.device.type == "cuda" and precision != "exact":
        return add_(_in_pieces(_on_gpu(x.dtype), x, weight, None, *options), args.bias, residual)
    convolution = conv3d if precision == "exact" else _convolution
    y = _in_pieces(convolution, x, weight, args.bias, *options)
    return y if residual is None else y.add_(residual)


def _is_image(args: ConvArgs, precision: str) -> bool:
    """Whether the input is a single first frame, whose output one slice of the weights, or their sum, gives.

    A sum rounded to half precision would cost digits, any number of them where taps cancel; in float64 the
    framework's order of sums is kept, because that is what others are compared with.
    """
    if args.x.shape[2] > 1 or args.initial_state is not None or args.weight.shape[2] == 1:
        return False
    if precision == "exact":
        return False
    mode = args.temporal_mode
    return mode == "zeros" or (mode == "replicate" and args.x.dtype == torch.float32)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    # F.conv3d takes a float32 input of up to 20,480 channel-rows to a scalar kernel instead of oneDNN:
    # 71 ms against 4 ms for 16->32 channels, 11x64x64, on two Zen 4 cores.
    if (
        _ONEDNN
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and torch.backends.mkldnn.enabled
        and weight.numel() * x.numel() // weight.shape[1] > _FEW_PRODUCTS
    ):
        if _is_mostly_weights(x, weight, dilation):
            return F.conv3d(x.contiguous(), weight, bias, stride, padding, dilation)
        if _copies_weights(x, weight):
            y = torch.mkldnn_convolution(x.contiguous(), weight, bias, padding, stride, dilation, 1)
            return y.contiguous(memory_format=torch.channels_last_3d)
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, 1)
    if x.dtype == torch.float16 and x.device.type == "cpu" and not _FLOAT16_ON_CPU:
        # Without float16 arithmetic in the processor F.conv3d takes a scalar kernel: over a minute for
        # 128->128 channels, 5x60x90, where float32 takes 0.1 s on two Zen 4 cores.
        bias = None if bias is None else bias.float()
        return _convolution(x.float(), weight.float(), bias, stride, padding, dilation).to(x.dtype)
    if (
        x.device.type == "cpu"
        and x.dtype != torch.float64
        and weight.shape[2:] == (1, 1, 1)
        and stride == [1, 1, 1]
    ):
        y = _pointwise(x, weight, bias)
        if y is not None:
            return y
    return conv3d(x, weight, bias, stride, padding, dilation)


def _is_mostly_weights(x: Tensor, weight: Tensor, dilation: list[int]) -> bool:
    """Whether oneDNN would take longer for the layout of its weights than it gains with so few pixels.

    F.conv3d unfolds frames of few rows, and reads weights as they lie. oneDNN's time over F.conv3d's, 3x3x3
    kernels of 256 to 512 channels, AVX2, one thread's own time, medians of 9 within 15 %: 2.0 to 3.5 on 1
    pixel, 0.7 to 0.9 on 4 and 8, 1.0 to 1.5 on 16 to 64, 0.8 to 1.1 on 128 and 256. Above 32 MiB malloc maps
    oneDNN's copy anew on every call: 2.2 to 15 on 1 to 64 pixels, 1.4 on 192.
    """
    if weight.numel() < 2**20 or not weight.is_contiguous():
        return False
    frames = x.shape[2] - dilation[0] * (weight.shape[2] - 1)
    pixels = x.shape[0] * frames * x.shape[3] * x.shape[4]
    if weight.nbytes > 2**25:
        return pixels <= 256
    return pixels == 1 or 8 < pixels <= 64


def _copies_weights(x: Tensor, weight: Tensor) -> bool:
    """Whether the framework would bring weights into the layout of less than their input and output.

    512->512 channels on 3x4x6 in channels_last_3d: 27 MiB and 25 ms a call, contiguous 18 ms, on two cores.
    """
    return (
        x.is_contiguous(memory_format=torch.channels_last_3d)
        and not x.is_contiguous()
        and not weight.is_contiguous(memory_format=torch.channels_last_3d)
        and weight.numel() > x.numel() + x.numel() // x.shape[1] * weight.shape[0]
    )


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return a 1x1x1 convolution as a matrix product, which needs no memory beside its result; or None.

    oneDNN's bfloat16 convolution of 256 to 128 channels on 9x96x144 allocates 212 MiB.
    """
    pixels, matrix = x.permute(0, 2, 3, 4, 1), weight.flatten(1)
    if pixels.is_contiguous():
        return F.linear(pixels, matrix, bias).permute(0, 4, 1, 2, 3)
    if not x.is_contiguous():
        return None
    y = torch.matmul(matrix, x.flatten(2)).unflatten(2, x.shape[2:])
    return y if bias is None else y.add_(bias.view(-1, 1, 1, 1))


@functools.cache
def _on_gpu(dtype: torch.dtype) -> Callable[..., Tensor]:
    """Return the convolution for a GPU: the framework's, unless its versions are known to break it."""
    broken = why_conv3d_is_broken(dtype)
    if broken is None:
        return F.conv3d
    warnings.warn(
        f"causalvae_kernels convolves frame by frame instead: {broken}", RuntimeWarning, stacklevel=2
    )
    return frame_by_frame


def frame_by_frame(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """Convolve in 2D, the frames that a kernel sees stacked as channels: one sum per output, as in 3D.

    It reads kT copies of the input, made for a few frames at a time. `padding` has none in time.
    """
    batch, channels, frames, height, width = x.shape
    taps = weight.shape[2]
    weight = weight.transpose(1, 2).flatten(1, 2)
    count = (frames - dilation[0] * (taps - 1) - 1) // stride[0] + 1
    step = max(_MAX_STACKED // (batch * taps * channels * height * width), 1)
    pieces = []
    for first in range(0, count, step):
        number = min(step, count - first)
        starts = [first * stride[0] + tap * dilation[0] for tap in range(taps)]
        stacked = torch.cat(
            [x[:, :, s : s + (number - 1) * stride[0] + 1 : stride[0]] for s in starts], dim=1
        ).transpose(1, 2)
        y = F.conv2d(stacked.flatten(0, 1), weight, bias, stride[1:], padding[1:], dilation[1:])
        pieces.append(y.unflatten(0, (batch, number)).transpose(1, 2))
    return torch.cat(pieces, dim=2)


# Elements of the stacked frames at a time: half a GB in half precision.
_MAX_STACKED = 2**28

# Below about a million products oneDNN's set-up of 50 us outweighs them: 52 against 8 us for 3->3, 3x2x2.
_FEW_PRODUCTS = 2**20
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch, "mkldnn_convolution")


def _has_float16_convolution() -> bool:
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None) if _ONEDNN else None
    return supported is not None and bool(supported())


_FLOAT16_ON_CPU = _has_float16_convolution()


def _in_pieces(
    convolution: object,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    pieces = x.numel() // _MAX_ELEMENTS + 1
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    frames = (x.shape[2] - reach) // stride[0] + 1
    step = -(-frames // pieces)
    if step >= frames:
        return convolution(x, weight, bias, stride, padding, dilation)
    parts = []
    for first in range(0, frames, step):
        last = min(first + step, frames) - 1
        window = x[:, :, first * stride[0] : last * stride[0] + reach]
        parts.append(convolution(window, weight, bias, stride, padding, dilation))
    return torch.cat(parts, dim=2)


# A residual that is the destination itself is read before the result is copied there.
CONV = Backend("aten", make=_convolve, two_sources=_is_image, adds_in_place=True)
