"""A call of `causal_conv3d` as the Triton kernels see it; knows no Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from .....core import memory
from .....core.layout import memory_format_of
from ...spec import ConvArgs


@dataclass(frozen=True)
class Call:
    """Tensors and sizes of a convolution whose output is there.

    An output sees a window of pixels through the kernel's taps, which walk over it in the order of (time,
    height, width), frame by frame. Folded weights (`folds.py`) may have more taps than the window has pixels.

    Attributes:
        x: Shape (B, Cin, T, H, W), any strides.
        weight: Shape (Cout, Cin, kT, kH, kW), any strides; folded, (Cout, Cin, taps, 1, 1).
        bias: Shape (Cout,), contiguous, or None.
        past: The frames before `x`, any strides, or None.
        residual: Shape of `out`, any strides, or None.
        out: Shape (B, Cout, T', H', W'), any strides.
        stride: (time, height, width).
        dilation: (time, height, width): pixels from a tap to the next; below zero, they walk back.
        window: (time, height, width): of how many pixels.
        frame_taps: Taps of a frame of the window, of its last one perhaps fewer. Those beyond height x width
            see the frame's first pixels again.
        causal: Frames of `past`, or those that `temporal_mode` puts there.
        front: Frames from the first tap of the first output to the first frame.
        top: The same in rows.
        left: The same in columns.
        temporal_mode: As the op takes it.
        spatial_mode: As the op takes it.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    past: Tensor | None
    residual: Tensor | None
    out: Tensor
    stride: Sequence[int]
    dilation: Sequence[int]
    window: Sequence[int]
    frame_taps: int
    causal: int
    front: int
    top: int
    left: int
    temporal_mode: str
    spatial_mode: str

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return math.prod(self.weight.shape[2:])

    @property
    def inputs(self) -> list[Tensor]:
        """What is read pixel by pixel: the frames, and those before them if there are any."""
        return [self.x] if self.past is None else [self.x, self.past]

    @cached_property
    def aligned(self) -> bool:
        """Whether inputs, and so packed weights, can be read 16 bytes at a time along contiguous channels."""
        vector = 16 // self.x.itemsize
        return self.x.shape[1] % vector == 0 and all(
            t.data_ptr() % 16 == 0
            and t.stride(1) == 1
            and all(t.stride(d) % vector == 0 for d in (0, 2, 3, 4) if t.shape[d] > 1)
            for t in self.inputs
        )

    @cached_property
    def out_aligned(self) -> bool:
        """Whether the output can be written 16 bytes at a time, along contiguous channels."""
        out, vector = self.out, 16 // self.out.itemsize
        return (
            out.data_ptr() % 16 == 0
            and out.stride(1) == 1
            and out.shape[1] % vector == 0
            and all(out.stride(d) % vector == 0 for d in (0, 2, 3, 4) if out.shape[d] > 1)
        )

    @cached_property
    def out_window(self) -> bool:
        """Whether the pixels of an output frame do not simply follow each other in memory."""
        out, (height, width) = self.out, self.out.shape[3:]
        pixel = out.shape[1] if out.stride(1) == 1 else 1
        return (width > 1 and out.stride(4) != pixel) or (height > 1 and out.stride(3) != width * pixel)

    @cached_property
    def add_like_out(self) -> bool:
        """Whether there is a residual that is read as the output is written."""
        add = self.residual
        return add is not None and add.stride() == self.out.stride() and add.data_ptr() % 16 == 0

    @property
    def smooth(self) -> bool:
        """Whether everything moves 16 bytes at a time."""
        return self.aligned and self.out_aligned and (self.residual is None or self.add_like_out)


def make_call(args: ConvArgs, out: Tensor | None = None) -> Call:
    """Work out the call that writes `out`, or memory that is allocated here."""
    if out is None:
        last = memory_format_of(args.x, args.weight)
        out = memory.empty(args.out_shape, dtype=args.out_dtype, device=args.x.device, memory_format=last)
    kernel_size, pad = args.weight.shape[2:], args.pad
    return Call(
        args.x,
        args.weight,
        None if args.bias is None else args.bias.contiguous(),
        args.initial_state if pad.causal else None,
        args.residual,
        out,
        args.stride,
        args.dilation,
        kernel_size,
        kernel_size[1] * kernel_size[2],
        pad.causal,
        pad.causal,
        pad.explicit[0] + pad.implicit[0],
        pad.explicit[2] + pad.implicit[1],
        args.temporal_mode,
        args.spatial_mode,
    )


def packed(weight: Tensor) -> Tensor:
    """Return the weights as (Cout, kT, kH, kW, Cin), contiguous and aligned: in place if channels_last_3d.

    Otherwise they are written anew on every call, for 512 -> 512 channels of 3x3x3 in bfloat16 14 MB read and
    14 written. They are not kept: whether they were changed since could only be seen by a checksum that the
    host waits for.
    """
    rows = weight.permute(0, 2, 3, 4, 1).contiguous()
    return rows if rows.data_ptr() % 16 == 0 else rows.clone()


def kernel_arguments(call: Call) -> dict[str, Any]:
    """Return the kernel's arguments but the weights and those of a tile.

    The constants among them, beside the window KH x KW and the numbers of taps: ZERO_PAST, the frames before
    the first one are zeros; SPATIAL, the spatial mode; WIDE, offsets inside an input frame need 64 bits;
    ALIGNED, see `Call.aligned`; OUT_LAST, the output's channels are contiguous; OUT_WINDOW, OUT_ALIGNED and
    ADD_LIKE_OUT, see `Call`.
    """
    x, past, out, add = call.x, call.past, call.out, call.residual
    strides = {
        f"{name}_{axis}": 0 if t is None else t.stride(d)
        for name, t in (("x", x), ("past", past), ("out", out), ("add", add))
        for d, axis in enumerate("bcthw")
    }
    steps = {
        f"{name}_{axis}": n
        for name, triple in (("step", call.stride), ("dilation", call.dilation))
        for axis, n in zip("thw", triple, strict=True)
    }
    return (
        strides
        | steps
        | {
            "x_ptr": x,
            "past_ptr": past,
            "bias_ptr": call.bias,
            "add_ptr": add,
            "out_ptr": out,
            "channels": x.shape[1],
            "out_channels": out.shape[1],
            "height": x.shape[3],
            "width": x.shape[4],
            "causal": call.causal,
            "front": call.front,
            "top": call.top,
            "left": call.left,
            "frames": out.shape[2],
            "out_height": out.shape[3],
            "out_width": out.shape[4],
            "KH": call.window[1],
            "KW": call.window[2],
            "FRAME_TAPS": call.frame_taps,
            "TAPS": call.taps,
            "ZERO_PAST": call.causal > 0 and past is None and call.temporal_mode == "zeros",
            "SPATIAL": call.spatial_mode,
            "WIDE": any(_extent(t) >= 2**31 for t in call.inputs),
            "ALIGNED": call.aligned,
            "OUT_LAST": out.stride(1) == 1,
            "OUT_WINDOW": call.out_window,
            "OUT_ALIGNED": call.out_aligned,
            "ADD_LIKE_OUT": call.add_like_out,
        }
    )


def _extent(x: Tensor) -> int:
    """Return the largest offset inside a frame."""
    return sum((x.shape[d] - 1) * x.stride(d) for d in (1, 3, 4))
