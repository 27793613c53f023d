"""Awkward calls of the ops, by name: what parity is checked on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..temporal import FrameBuffer

LAYOUTS = ("contiguous", "channels_last_3d", "sliced", "permuted")


@dataclass(frozen=True)
class ConvCase:
    """One call of `causal_conv3d`.

    Attributes:
        name: What the case guards.
        shape: (B, Cin, T, H, W) of the input.
        out_channels: Cout.
        kernel_size: (kT, kH, kW).
        layout: Strides of input, state and residual: one of `LAYOUTS`.
        state: Start from an `initial_state`.
        bias: Add a bias.
        residual: Add a residual.
        options: Further keyword arguments: stride, dilation, modes.
    """

    name: str
    shape: tuple[int, int, int, int, int]
    out_channels: int
    kernel_size: tuple[int, int, int] = (3, 3, 3)
    layout: str = "contiguous"
    state: bool = False
    bias: bool = True
    residual: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PadCase:
    """One call of `causal_pad3d`.

    Attributes:
        name: What the case guards.
        shape: (B, C, T, H, W) of the frames.
        causal_padding: Frames in front.
        spatial_padding: (top, bottom, left, right).
        layout: One of `LAYOUTS`.
        state: Start from an `initial_state`.
        options: Modes.
    """

    name: str
    shape: tuple[int, int, int, int, int]
    causal_padding: int
    spatial_padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    layout: str = "contiguous"
    state: bool = False
    options: dict[str, Any] = field(default_factory=dict)


CONV_CASES: tuple[ConvCase, ...] = (
    ConvCase("plain", (1, 16, 5, 12, 10), 16),
    ConvCase("one frame", (1, 8, 1, 9, 7), 16),
    ConvCase("fewer frames than the kernel, state", (1, 8, 1, 6, 6), 8, state=True),
    ConvCase("two frames, zeros", (2, 7, 2, 5, 6), 5, options={"temporal_mode": "zeros"}),
    ConvCase("rgb in", (1, 3, 4, 11, 13), 16, layout="channels_last_3d"),
    ConvCase("rgb out, residual", (1, 16, 3, 8, 9), 3, residual=True),
    ConvCase("height of one", (1, 5, 3, 1, 17), 6),
    ConvCase("width of one, channels last", (1, 6, 3, 17, 1), 5, layout="channels_last_3d"),
    ConvCase("one pixel, one channel", (1, 1, 2, 1, 1), 1),
    ConvCase("no tile divides, batch", (3, 17, 3, 13, 19), 33, layout="sliced", residual=True),
    ConvCase(
        "channels last, state, residual",
        (2, 12, 4, 7, 9),
        20,
        layout="channels_last_3d",
        state=True,
        residual=True,
    ),
    ConvCase("permuted strides, state", (2, 6, 3, 8, 5), 7, layout="permuted", state=True, residual=True),
    ConvCase("no bias", (1, 9, 3, 6, 6), 9, bias=False),
    ConvCase("pointwise", (1, 16, 4, 6, 7), 24, (1, 1, 1)),
    ConvCase("time only", (1, 8, 5, 4, 6), 8, (3, 1, 1), state=True),
    ConvCase("space only, stride 2", (1, 8, 3, 9, 12), 8, (1, 3, 3), options={"stride": (1, 2, 2)}),
    ConvCase("stride 2 everywhere", (1, 6, 6, 8, 9), 10, options={"stride": 2}),
    ConvCase("time stride, state", (1, 4, 4, 5, 6), 6, state=True, options={"stride": (2, 1, 1)}),
    ConvCase("even kT, wide kernel", (1, 4, 5, 9, 12), 5, (4, 5, 7)),
    ConvCase("dilation", (1, 5, 6, 11, 12), 6, options={"dilation": (2, 3, 2)}, state=True),
    ConvCase("replicate in space", (1, 8, 3, 6, 7), 9, options={"spatial_mode": "replicate"}, residual=True),
    ConvCase(
        "reflect in space, channels last",
        (1, 8, 3, 6, 7),
        9,
        layout="channels_last_3d",
        options={"spatial_mode": "reflect", "temporal_mode": "zeros"},
    ),
    ConvCase("reflect, wide", (2, 3, 2, 8, 9), 4, (2, 5, 5), state=True, options={"spatial_mode": "reflect"}),
    ConvCase("valid in space", (1, 6, 4, 9, 8), 6, options={"spatial_mode": "valid", "stride": (1, 2, 1)}),
    ConvCase("valid in time", (1, 6, 5, 7, 8), 6, options={"temporal_mode": "valid"}),
)

PAD_CASES: tuple[PadCase, ...] = (
    PadCase("plain", (1, 4, 5, 6, 7), 2),
    PadCase("one frame, all sides", (2, 3, 1, 5, 4), 2, (1, 1, 1, 1)),
    PadCase("zeros in time", (1, 3, 3, 4, 5), 3, options={"temporal_mode": "zeros"}),
    PadCase("state, channels last", (2, 5, 4, 6, 7), 2, (1, 1, 1, 1), "channels_last_3d", True),
    PadCase("state, fewer frames", (1, 3, 1, 4, 4), 4, state=True),
    PadCase("asymmetric", (1, 3, 2, 5, 6), 0, (0, 1, 0, 1)),
    PadCase("replicate", (1, 3, 2, 5, 6), 1, (2, 1, 0, 3), options={"spatial_mode": "replicate"}),
    PadCase(
        "reflect", (1, 3, 2, 5, 6), 1, (2, 1, 4, 3), "channels_last_3d", options={"spatial_mode": "reflect"}
    ),
    PadCase("one pixel, replicate", (1, 1, 1, 1, 1), 2, (3, 3, 3, 3), options={"spatial_mode": "replicate"}),
    PadCase("sliced, batch", (3, 7, 3, 9, 5), 2, (1, 2, 3, 4), "sliced", True, {"spatial_mode": "replicate"}),
    PadCase("permuted", (2, 4, 3, 5, 6), 2, (1, 1, 1, 1), "permuted", options={"temporal_mode": "zeros"}),
    PadCase("nothing to pad", (1, 2, 3, 4, 5), 0),
)


def with_layout(x: Tensor, layout: str) -> Tensor:
    """Return the same values behind other strides.

    Args:
        x: Shape (B, C, T, H, W).
        layout: "contiguous", "channels_last_3d", "sliced" (every second column of a larger tensor) or
            "permuted" (frames outside channels, as after a per-frame 2D convolution).
    """
    if layout == "channels_last_3d":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "sliced":
        wide = x.new_zeros(*x.shape[:4], 2 * x.shape[4] + 1)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "permuted":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.contiguous()


def make_conv_call(
    case: ConvCase, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return fresh random keyword arguments of `causal_conv3d` for a case."""
    generator = torch.Generator(device).manual_seed(seed)
    batch, channels, _, height, width = case.shape
    dilation = case.options.get("dilation", (1, 1, 1))

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, device=device)).to(dtype)

    fan_in = channels * case.kernel_size[0] * case.kernel_size[1] * case.kernel_size[2]
    call: dict[str, Any] = dict(case.options)
    call["x"] = with_layout(random(*case.shape), case.layout)
    call["weight"] = random(case.out_channels, channels, *case.kernel_size, scale=fan_in**-0.5)
    if case.bias:
        call["bias"] = random(case.out_channels)
    if case.state:
        frames = dilation[0] * (case.kernel_size[0] - 1)
        call["initial_state"] = with_layout(random(batch, channels, frames, height, width), case.layout)
    if case.residual:
        call["residual"] = with_layout(random(batch, case.out_channels, *case.shape[2:]), case.layout)
    return call


def make_pad_call(
    case: PadCase, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return fresh random keyword arguments of `causal_pad3d` for a case."""
    generator = torch.Generator(device).manual_seed(seed)
    batch, channels, _, height, width = case.shape
    state_shape = (batch, channels, case.causal_padding, height, width)
    call: dict[str, Any] = dict(case.options)
    call |= {"causal_padding": case.causal_padding, "spatial_padding": case.spatial_padding}
    x, state = (
        (10 * torch.randn(s, generator=generator, device=device)).to(dtype) for s in (case.shape, state_shape)
    )
    call["x"] = with_layout(x, case.layout)
    if case.state:
        call["initial_state"] = with_layout(state, case.layout)
    return call


def in_buffer(x: Tensor, head_room: int, halo: tuple[int, int, int, int] = (0, 0, 0, 0)) -> FrameBuffer:
    """Return a `FrameBuffer` with these frames as its body and a border that must not be read."""
    last = x.stride(1) == 1 and x.shape[1] > 1
    buffer = FrameBuffer.empty(
        x.shape,
        head_room=head_room,
        halo=halo,
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last_3d if last else torch.contiguous_format,
    )
    buffer.storage.fill_(float("nan") if x.is_floating_point() else -1)
    buffer.body.copy_(x)
    return buffer
