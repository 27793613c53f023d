"""Calls of `upsample_conv` whose products cancel, so that what a fold loses shows."""

from __future__ import annotations

from typing import Any

import torch

SMOOTH, CHANNELS, MEAN = "smooth frames, taps cancel", "equal channels, channels cancel", "a large mean"
CANCELLING = (SMOOTH, CHANNELS, MEAN)


def cancelling_call(kind: str, scale: tuple[int, int, int], dtype: torch.dtype, seed: int) -> dict[str, Any]:
    """Return keyword arguments: 16 channels in and out, edges replicated, a kernel of three frames in time.

    What is left of the sums is between a tenth and a hundredth of their terms.
    """
    generator = torch.Generator().manual_seed(seed)
    frames = 3 if scale[0] == 2 else 1
    x = torch.randn(1, 16, 2, 6, 7, generator=generator)
    weight = torch.randn(16, 16, frames, 3, 3, generator=generator) / (144 * frames) ** 0.5
    if kind == SMOOTH:
        x, weight = 1 + 0.01 * x, weight - weight.mean((1, 2, 3, 4), keepdim=True)
    elif kind == MEAN:
        x, weight = 40 + x, weight - weight.mean((2, 3, 4), keepdim=True)
    else:
        x = x[:, :1].expand(-1, 16, -1, -1, -1)
        weight = weight - 0.98 * weight.mean(1, keepdim=True)
    last = {"memory_format": torch.channels_last_3d}
    return {
        "x": x.to(dtype).contiguous(**last),
        "weight": weight.to(dtype),
        "scale": scale,
        "spatial_mode": "replicate",
    }
