"""What `causal_pad3d` accepts and what it must move."""

from __future__ import annotations

from collections.abc import Sequence

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
