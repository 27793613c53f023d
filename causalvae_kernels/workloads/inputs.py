"""Inputs for tests and benchmarks."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def make_video(
    num_frames: int,
    height: int,
    width: int,
    *,
    batch: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return a moving pattern with noise, what a clip looks like to a VAE.

    Returns:
        Shape (batch, 3, num_frames, height, width), values in [-1, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(num_frames).view(-1, 1, 1) / 8
    rows = torch.arange(height).view(1, -1, 1) / 16
    columns = torch.arange(width).view(1, 1, -1) / 16
    phases = 2 * math.pi * torch.rand(batch, 3, 1, 1, 1, generator=generator)
    waves = torch.sin(2 * math.pi * (columns - time) + phases) * torch.cos(2 * math.pi * (rows + time / 2))
    noise = torch.randn(waves.shape, generator=generator)
    return (0.7 * waves + 0.1 * noise).clamp(-1, 1).to(dtype)
