"""What `causal_pad3d` accepts and what it must move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core.traffic import Pass, Work
from ...temporal.frame_buffer import body_of

TIER = "exact"
TEMPORAL_MODES = ("replicate", "zeros")
SPATIAL_MODES = ("zeros", "replicate", "reflect")


def padded_shape(
    shape: Sequence[int], causal_padding: int, sides: Sequence[int]
) -> tuple[int, int, int, int, int]:
    """Return the shape of frames (B, C, T, H, W) with frames in front and pixels on four sides."""
    batch, channels, frames, height, width = shape
    top, bottom, left, right = sides
    return batch, channels, causal_padding + frames, top + height + bottom, left + width + right


class PadArgs(NamedTuple):
    """The arguments of `causal_pad3d`; `spatial_padding` is (top, bottom, left, right)."""

    x: Tensor
    initial_state: Tensor | None
    causal_padding: int
    spatial_padding: Sequence[int]
    temporal_mode: str
    spatial_mode: str

    @classmethod
    def of_conv(cls, x: Tensor, initial_state: Tensor | None, pad: Any, temporal_mode: str) -> PadArgs:
        """Return what must be written for a convolution that is padded so (`causal_conv3d.spec.Paddings`)."""
        return cls(x, initial_state, pad.causal, pad.explicit, temporal_mode, pad.explicit_mode)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of the padded frames."""
        return padded_shape(self.x.shape, self.causal_padding, self.spatial_padding)

    @property
    def out_dtype(self) -> torch.dtype:
        """Of the padded frames."""
        return self.x.dtype

    def work(self, out: Tensor | None) -> Work:
        """Return what must be computed and moved; `out` is the destination, if there is one."""
        border = (self.causal_padding, self.spatial_padding)
        return Work(0, bytes_moved(self.x.shape, *border, self.x.element_size(), in_place=False))


class BorderArgs(NamedTuple):
    """The arguments of `causal_pad3d_` but the storage, whose border is filled."""

    initial_state: Tensor | None
    causal_padding: int
    spatial_padding: Sequence[int]
    temporal_mode: str
    spatial_mode: str

    def work(self, out: Tensor) -> Work:
        """Return what must be computed and moved for the border of `out`."""
        border = (self.causal_padding, self.spatial_padding)
        body = body_of(out, *border)
        return Work(0, bytes_moved(body.shape, *border, out.element_size(), in_place=True))


def bytes_moved(
    shape: Sequence[int],
    causal_padding: int,
    spatial_padding: Sequence[int],
    itemsize: int,
    *,
    in_place: bool,
) -> int:
    """Return the bytes that must be written, plus those that must be read for them.

    Args:
        shape: Shape of the frames without padding, (B, C, T, H, W).
        causal_padding: Frames added in front.
        spatial_padding: Pixels added: (top, bottom, left, right).
        itemsize: Bytes per element.
        in_place: Count the border only (`causal_pad3d_`) instead of border and frames (`causal_pad3d`).
    """
    batch, channels, frames, height, width = shape
    top, bottom, left, right = spatial_padding
    padded = (causal_padding + frames) * (top + height + bottom) * (left + width + right)
    written = padded - frames * height * width if in_place else padded
    return 2 * batch * channels * written * itemsize


def moves(args: PadArgs, out: Tensor | None) -> list[Pass]:
    """Return the pass that writes padded frames."""
    return _passes("causal_pad3d", args.x, args.causal_padding, args.spatial_padding, in_place=False)


def moves_in_place(args: BorderArgs, storage: Tensor) -> list[Pass]:
    """Return the pass that writes the border."""
    border = (args.causal_padding, args.spatial_padding)
    return _passes("causal_pad3d_", body_of(storage, *border), *border, in_place=True)


def _passes(
    name: str, x: Tensor, causal_padding: int, spatial_padding: Sequence[int], *, in_place: bool
) -> list[Pass]:
    moved = bytes_moved(x.shape, causal_padding, spatial_padding, x.element_size(), in_place=in_place)
    return [Pass(name, moved // 2, moved // 2)]
