"""The state of a stream: the last kT-1 frames that a causal op has seen, as a value."""

from __future__ import annotations

import torch
from torch import Tensor


def past_frames(x: Tensor, frames: int, initial_state: Tensor | None, temporal_mode: str) -> list[Tensor]:
    """Return the frames before the first one.

    Args:
        x: Frames, shape (B, C, T, H, W).
        frames: How many.
        initial_state: The frames themselves, shape (B, C, frames, H, W), if this is no first chunk.
        temporal_mode: What stands before a first chunk: "replicate" (its first frame) or "zeros".

    Returns:
        Tensors of shape (B, C, n, H, W), their n summing up to `frames`, dtype of `x`; views where possible.
        They are pieces, because `torch.cat` takes the memory format of its inputs, and frames that are
        expanded have none.
    """
    if initial_state is not None:
        return [initial_state]
    if temporal_mode == "replicate":
        return [x[:, :, :1]] * frames
    return [torch.zeros_like(x[:, :, :1])] * frames


def behind_zeros(x: Tensor, frames: int) -> Tensor:
    """Return frames (B, C, T, H, W) behind so many frames of zeros; itself if there are none."""
    return torch.cat([*[torch.zeros_like(x[:, :, :1])] * frames, x], dim=2) if frames else x


def final_state(
    x: Tensor, frames: int, *, initial_state: Tensor | None = None, temporal_mode: str = "replicate"
) -> Tensor:
    """Return the last frames of what a causal op has seen: the `initial_state` of the next chunk.

    Args:
        x: This chunk, shape (B, C, T, H, W).
        frames: How many frames the op looks back: dilation * (kT - 1).
        initial_state: What this chunk started from, shape (B, C, frames, H, W).
        temporal_mode: "replicate" or "zeros"; matters when T < frames and there is no `initial_state`.

    Returns:
        Shape (B, C, frames, H, W), dtype of `x`; owns its memory.
    """
    missing = frames - x.shape[2]
    if not missing:
        return x.clone()
    if missing < 0:
        return x[:, :, x.shape[2] - frames :].clone()
    if initial_state is not None:
        initial_state = initial_state[:, :, frames - missing :]
    return torch.cat([*past_frames(x, missing, initial_state, temporal_mode), x], dim=2)
