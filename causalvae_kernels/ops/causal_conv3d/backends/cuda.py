"""Causal convolution by the CUDA module: an implicit GEMM on the tensor cores, bias and residual included.

It reads frames in channels_last_3d where they lie, zeros around and in front of them for free. What else
must stand in front or around (a state, the first frame again, a halo) is written by one pass of our padding
kernel, which changes the layout as well; a `FrameBuffer` arrives padded, and nothing is copied.
docs/design/cuda.md tells how the kernels are built and what is known of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....core import native
from ....core.backend import Backend
from ....core.gpu_arch import GpuArch, arch_of_code
from ....core.precision import why_not_exact
from ...causal_pad3d.backends.cuda import padded_copy
from ...causal_pad3d.backends.cuda import why_not as why_not_padded
from ...causal_pad3d.spec import PadArgs
from ..spec import ConvArgs, Paddings, moves_padded

_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
# As csrc/cuda/host/implicit_conv.h has them: 16 bytes of channels, im2col's corners, 32-bit coordinates.
_CHANNELS = 8
_REACH = 16
_MOST_PIXELS = 2**31 - 1024
_LAST = torch.channels_last_3d


def _why_not(args: ConvArgs, precision: str, out: Tensor | None) -> str | None:
    x, weight = args.x, args.weight
    if x.dtype not in _DTYPES:
        return f"the kernel knows bfloat16 and float16, not {x.dtype}"
    reason = why_not_exact(precision, "convolution")
    if reason is not None:
        return reason
    for name, channels in (("input", weight.shape[1]), ("output", weight.shape[0])):
        if channels % _CHANNELS:
            return f"the kernel takes multiples of {_CHANNELS} {name} channels, not {channels}"
    kernel_size = tuple(weight.shape[2:])
    reach = max(d * (k - 1) for d, k in zip(args.dilation, kernel_size, strict=True))
    if reach > _REACH:
        return (
            f"the kernel reaches over {_REACH} frames or pixels, and size {kernel_size} with dilation "
            f"{tuple(args.dilation)} over {reach}"
        )
    size = args.size
    pixels = x.shape[0] * size[0] * size[1] * size[2]
    if pixels > _MOST_PIXELS:
        return f"the output has {pixels} pixels, the kernel takes at most {_MOST_PIXELS}"
    reason = native.why_no_cuda(x.device) or _why_no_code(x.device)
    if reason is not None:
        return reason
    taps = _taps(args)
    if not _reads_in_place(x, taps, args.pad):
        reason = why_not_padded(_padding(args, taps), precision, None)
    return reason or (None if out is None else _why_not_into(out))


def _why_not_into(out: Tensor) -> str | None:
    if not readable(out):
        return (
            f"the output has strides {out.stride()}, the kernel writes into windows of channels_last_3d "
            "tensors whose pixels begin at multiples of 16 bytes"
        )
    if not (_writes_windows(out.device) or _pixels_are_rows(out)):
        return "the output has a halo around its pixels, the kernel for 8.x writes frames without one"
    return None


def _why_no_code(device: torch.device) -> str | None:
    """The convolution is written for some of the architectures that the module may be built for."""
    arch = _arch(device)
    if arch is not None and arch.cuda_conv is not None:
        return None
    return (
        f"of the module's code this GPU runs that for {native.cuda_arch(device)}, and the convolution is "
        "written for 90a (9.0) and 80 to 89 (8.x)"
    )


def _padding(args: ConvArgs, taps: Any) -> PadArgs:
    """Return the padding that must be written: only such frames as the kernel does not have for free."""
    past = args.initial_state if taps.copied else None
    mode, pad = args.temporal_mode if taps.copied else "zeros", args.pad
    return PadArgs(args.x, past, taps.copied, pad.explicit, mode, pad.explicit_mode)


def _make(args: ConvArgs, precision: str) -> Tensor:
    out = torch.empty(args.out_shape, dtype=args.out_dtype, device=args.x.device, memory_format=_LAST)
    _convolve(out, args, precision)
    return out


def _convolve(out: Tensor, args: ConvArgs, precision: str) -> None:
    pad, taps, x = args.pad, _taps(args), args.x
    if not _reads_in_place(x, taps, pad):
        x = padded_copy(_padding(args, taps), _LAST)
    weight = _weight_of_taps(args.weight, taps)
    bias = None if args.bias is None else _aligned(args.bias.contiguous())
    residual = args.residual
    rows = _writes_windows(x.device) or residual is None or _pixels_are_rows(residual)
    if residual is not None and not (rows and readable(residual)):
        residual = _aligned(residual.contiguous(memory_format=_LAST))
    native.cuda_module().causal_conv3d(
        native.describe(out),
        native.describe(x),
        native.describe(weight),
        None if bias is None else bias.data_ptr(),
        None if residual is None else native.describe(residual),
        tuple(args.stride),
        (taps.step, *args.dilation[1:]),
        (taps.zeros, *pad.implicit),
        (0, *pad.implicit),
        _DTYPES[x.dtype],
        *native.current_stream(x.device),
    )


def _taps(args: ConvArgs) -> Any:
    """Return which taps are computed, and which frames must stand in front (csrc/common/index.h)."""
    frames, taps = args.x.shape[2], args.weight.shape[2]
    steps, has_state = (args.dilation[0], args.stride[0]), args.initial_state is not None
    return native.cuda_module().time_taps(frames, taps, *steps, has_state, args.temporal_mode)


def _reads_in_place(x: Tensor, taps: Any, pad: Paddings) -> bool:
    return not taps.copied and not any(pad.explicit) and readable(x)


def _weight_of_taps(weight: Tensor, taps: Any) -> Tensor:
    """Return the taps that are computed, channels innermost: of the weight itself where its own are."""
    if taps.summed:
        total = weight.sum(2, dtype=torch.float32)
        high = total.to(weight.dtype)
        weight = torch.stack((high, (total - high).to(weight.dtype)), dim=2)
    else:
        weight = weight[:, :, taps.first : taps.first + taps.count]
    if readable(weight) and _pixels_are_rows(weight):
        return weight
    return _aligned(weight.contiguous(memory_format=_LAST))


def readable(x: Tensor) -> bool:
    """Tell whether the kernels read a tensor where it lies: a window into a dense channels_last_3d one.

    Its address and its strides must be multiples of 16 bytes, the strides grow from C over W, H, T to B.
    """
    if native.address(x) % 16 or x.stride(1) != 1:
        return False
    least = x.shape[1]
    for dim in (4, 3, 2, 0):
        if x.shape[dim] > 1:
            if x.stride(dim) < least or x.stride(dim) % _CHANNELS:
                return False
            least = x.stride(dim)
        least *= x.shape[dim]
    return True


def _writes_windows(device: torch.device) -> bool:
    """Tell whether outputs may be windows: TMA writes them; the epilogue for sm_80 takes rows of pixels."""
    arch = _arch(device)
    return arch is not None and arch.writes_windows


def _arch(device: torch.device) -> GpuArch | None:
    code = native.cuda_arch(device)
    return None if code is None else arch_of_code(code)


def _pixels_are_rows(x: Tensor) -> bool:
    """Tell whether the pixels of a batch entry follow each other at one distance."""
    _, channels, frames, height, width = x.shape
    row = x.stride(4) if width > 1 else channels
    frame = x.stride(3) if height > 1 else row * width
    return frame == row * width and (frames == 1 or x.stride(2) == frame * height)


def _aligned(x: Tensor) -> Tensor:
    """Return `x`, copied if it does not begin at a multiple of 16 bytes."""
    return x.clone() if x.data_ptr() % 16 else x


CONV = Backend("cuda", _convolve, _make, _why_not, moves=moves_padded)
