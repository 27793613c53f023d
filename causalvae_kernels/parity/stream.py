"""Chunk by chunk: run a causal op over pieces of a clip, handing the state on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def run_in_chunks(
    op: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    chunks: Sequence[int],
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `op` over consecutive chunks of frames.

    Args:
        op: Called as `op(chunk, initial_state=state)`, returns (output, final state).
        x: Frames, shape (B, C, T, H, W).
        chunks: Number of frames of each chunk; their sum is T.
        initial_state: State of the first chunk.

    Returns:
        The outputs joined along time, and the last state.
    """
    if sum(chunks) != x.shape[2]:
        raise ValueError(
            f"run_in_chunks: chunks {tuple(chunks)} sum up to {sum(chunks)}, expected T = {x.shape[2]}"
        )
    outputs, state = [], initial_state
    for chunk in x.split(list(chunks), dim=2):
        output, state = op(chunk, initial_state=state)
        outputs.append(output)
    return torch.cat(outputs, dim=2), state
