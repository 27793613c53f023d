"""Calls of the ops made from a shape, for `info` and `explain`: their tensors have no memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..core.checks import check_countable
from ..core.dry_run import without_data
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
        """Return a tensor; one with five dimensions is in this memory format."""
        check_countable("explain", "a tensor", shape, self.dtype)
        memory_format = self.memory_format if len(shape) == 5 else torch.contiguous_format
        return torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=memory_format)


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _conv(call: CallShape) -> Arguments:
    weight = call.empty((call.out_channels, call.shape[1], *call.kernel_size))
    return (call.empty(call.shape), weight), {"stride": call.stride, **call.modes}


def _pad(call: CallShape) -> Arguments:
    return (call.empty(call.shape), call.kernel_size[0] - 1, call.halo), call.modes


def _pad_in_place(call: CallShape) -> Arguments:
    return (_buffer(call),), call.modes


def _buffer(call: CallShape) -> FrameBuffer:
    """Return the buffer that a convolution with this kernel reads."""
    top, left = call.halo
    return FrameBuffer.empty(
        call.shape,
        head_room=call.kernel_size[0] - 1,
        halo=(top, top, left, left),
        dtype=call.dtype,
        device=call.device,
        memory_format=call.memory_format,
    )


def _rms_norm(call: CallShape) -> Arguments:
    return (call.empty(call.shape), call.empty(call.shape[1:2])), {}


def _group_norm(call: CallShape) -> Arguments:
    x, *parameters = (call.empty(s) for s in (call.shape, call.shape[1:2], call.shape[1:2]))
    return (x, math.gcd(call.shape[1], _NUM_GROUPS), *parameters), {}


def _spatial_norm(call: CallShape) -> Arguments:
    batch, channels, frames, height, width = call.shape
    first = frames > 1 and frames % 2
    latent = (batch, channels, first + _halved(frames - first), _halved(height), _halved(width))
    (x, *rest), keywords = _group_norm(call)
    return (x, call.empty(latent), call.empty(latent), *rest), keywords


def _halved(size: int) -> int:
    return size if size % 2 else size // 2


# Of the VAEs in diffusers, where the channels allow it.
_NUM_GROUPS = 32


def _downsample(call: CallShape) -> Arguments:
    return (call.empty(call.shape), call.empty((call.out_channels, call.shape[1], 1, 3, 3))), {}


def _upsample(call: CallShape) -> Arguments:
    weight = call.empty((call.out_channels, call.shape[1], call.kernel_size[0], 3, 3))
    return (call.empty(call.shape), weight), call.modes


_CALLS: dict[str, Callable[[CallShape], Arguments]] = {
    "causal_conv3d": _conv,
    "causal_pad3d": _pad,
    "causal_pad3d_": _pad_in_place,
    "group_norm": _group_norm,
    "rms_norm": _rms_norm,
    "spatial_norm": _spatial_norm,
    "downsample_conv": _downsample,
    "upsample_conv": _upsample,
}


def op_names() -> list[str]:
    """Return the names of the ops that a call can be made for."""
    return [op.name for op in all_ops() if op.name in _CALLS]


def call_arguments(op_name: str, call: CallShape) -> Arguments:
    """Return positional and keyword arguments of the public function; no tensor among them has memory.

    Raises:
        InvalidInput: There is no such op.
    """
    if op_name not in op_names():
        raise InvalidInput(f"op: got {op_name!r}, expected one of {', '.join(op_names())}")
    with without_data():
        return _CALLS[op_name](call)
