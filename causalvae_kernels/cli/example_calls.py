"""Calls of the ops made from a shape, for `info` and `explain`: nothing is computed with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import InvalidInput
from ..core.op import all_ops
from ..temporal import FrameBuffer


@dataclass(frozen=True)
class CallShape:
    """What a call looks like.

    Attributes:
        shape: (B, C, T, H, W) of the input.
        out_channels: Of a convolution.
        kernel_size: (kT, kH, kW); a padding op pads as such a convolution needs it.
        stride: (time, height, width) of a convolution.
        dtype: Of all tensors.
        device: Of all tensors.
        channels_last: Whether all tensors are channels_last_3d, else contiguous.
        temporal_mode: As the op takes it; None for its default.
        spatial_mode: As the op takes it; None for its default.
    """

    shape: tuple[int, ...]
    out_channels: int
    kernel_size: tuple[int, ...] = (3, 3, 3)
    stride: tuple[int, ...] = (1, 1, 1)
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    channels_last: bool = False
    temporal_mode: str | None = None
    spatial_mode: str | None = None

    @property
    def halo(self) -> tuple[int, int]:
        """Pixels around a frame: (height, width)."""
        return self.kernel_size[1] // 2, self.kernel_size[2] // 2

    @property
    def modes(self) -> dict[str, str]:
        """The keyword arguments for the padding modes."""
        modes = {"temporal_mode": self.temporal_mode, "spatial_mode": self.spatial_mode}
        return {name: mode for name, mode in modes.items() if mode is not None}

    @property
    def memory_format(self) -> torch.memory_format:
        """Of all tensors."""
        return torch.channels_last_3d if self.channels_last else torch.contiguous_format

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return an uninitialised tensor of this dtype, device and memory format."""
        return torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=self.memory_format)


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _conv(call: CallShape) -> Arguments:
    weight = call.empty((call.out_channels, call.shape[1], *call.kernel_size))
    return (call.empty(call.shape), weight), {"stride": call.stride, **call.modes}


def _pad(call: CallShape) -> Arguments:
    return (call.empty(call.shape), call.kernel_size[0] - 1, call.halo), call.modes


def _pad_in_place(call: CallShape) -> Arguments:
    top, left = call.halo
    buffer = FrameBuffer.empty(
        call.shape,
        head_room=call.kernel_size[0] - 1,
        halo=(top, top, left, left),
        dtype=call.dtype,
        device=call.device,
        memory_format=call.memory_format,
    )
    return (buffer,), call.modes


def _downsample(call: CallShape) -> Arguments:
    return (call.empty(call.shape), call.empty((call.out_channels, call.shape[1], 1, 3, 3))), {}


def _upsample(call: CallShape) -> Arguments:
    weight = call.empty((call.out_channels, call.shape[1], call.kernel_size[0], 3, 3))
    return (call.empty(call.shape), weight), call.modes


_CALLS: dict[str, Callable[[CallShape], Arguments]] = {
    "causal_conv3d": _conv,
    "causal_pad3d": _pad,
    "causal_pad3d_": _pad_in_place,
    "downsample_conv": _downsample,
    "upsample_conv": _upsample,
}


def op_names() -> list[str]:
    """Return the names of the ops that a call can be made for."""
    return [op.name for op in all_ops() if op.name in _CALLS]


def call_arguments(op_name: str, call: CallShape) -> Arguments:
    """Return positional and keyword arguments of the public function.

    Raises:
        InvalidInput: There is no such op.
    """
    if op_name not in op_names():
        raise InvalidInput(f"op: got {op_name!r}, expected one of {', '.join(op_names())}")
    return _CALLS[op_name](call)
