"""A tiny model of every family that `swap` has rules for, and clips that it takes."""

from __future__ import annotations

import functools

import torch

from causalvae_kernels import frame_rule
from causalvae_kernels.models import FAMILIES
from tests.support.tiny_vaes import TINY_VAES, TinyVAE

HERE = {name: tiny for name, tiny in TINY_VAES.items() if tiny.cls in FAMILIES}


@functools.cache
def _built(name: str) -> torch.nn.Module:
    return HERE[name].build()


def build(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Return a fresh copy of a tiny model."""
    return HERE[name].build().to(dtype)


def clip_of(
    tiny: TinyVAE, frames: int, batch: int = 1, times: int = 1, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return a clip `times` as high and wide as the smallest one that the model takes."""
    generator = torch.Generator().manual_seed(frames)
    size = (batch, tiny.channels, frames, tiny.size * times, tiny.size * times)
    return (torch.rand(size, generator=generator) * 2 - 1).to(dtype)


def valid(name: str, frames: int) -> int:
    """Return the number of frames next to this one that makes the round trip."""
    rule = frame_rule(_built(name))
    return frames if rule.comes_back(frames) else rule.nearest_valid(frames)[1]
