"""Small models of Wan's kind, and running them chunk by chunk as diffusers does."""

from __future__ import annotations

import copy
import functools
from typing import Any

import diffusers
import torch
from torch import Tensor

from causalvae_kernels import swap
from tests.support.moulds import Mould
from tests.support.seeds import seeded

_WIDTHS = {"base_dim": 6, "z_dim": 5, "num_res_blocks": 1, "dim_mult": [1, 2, 4, 4]}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "2.1": ("AutoencoderKLWan", _WIDTHS),
    "2.2": (
        "AutoencoderKLWan",
        {**_WIDTHS, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12}
        | {"scale_factor_spatial": 16},
    ),
    "qwen": ("AutoencoderKLQwenImage", _WIDTHS),
    "qwen 2.1": (
        "AutoencoderKLQwenImage21",
        {**_WIDTHS, "decoder_base_dim": 6, "temperal_downsample": [False, True, True]},
    ),
}
VIDEO = ("2.1", "2.2", "qwen")


@functools.cache
def _mould(name: str) -> Mould:
    cls, config = CONFIGS[name]
    with seeded(7):
        return Mould(getattr(diffusers, cls)(**config).eval().requires_grad_(False))


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a fresh copy of a model whose channel counts are multiples of no vector."""
    return _mould(name).cast().to(dtype)


def chunks_of(name: str, coder: str, dtype: torch.dtype = torch.float32, batch: int = 1) -> list[Tensor]:
    """Return three chunks as the model gives them to its encoder or decoder, odd in height and width."""
    if coder == "decoder":
        sizes = [(5, 1, 3, 2)] * 3
    else:
        channels = 12 if name == "2.2" else 3
        sizes = [(channels, frames, 24, 16) for frames in (1, 4, 4)]
    return [torch.randn(batch, *size).to(dtype) for size in sizes]


def places(coder: torch.nn.Module) -> list[Any]:
    """Return an empty feature cache."""
    kind = type(coder.conv_in)
    return [None] * sum(isinstance(module, kind) for module in coder.modules())


def run(coder: torch.nn.Module, x: Tensor, cache: list[Any] | None, first: bool) -> Tensor:
    """Run a chunk as diffusers does."""
    told = first and type(coder).__name__ == "WanDecoder3d"
    options = {"first_chunk": True} if told else {}
    return coder(x, feat_cache=cache, feat_idx=[0], **options)


class Holder(diffusers.AutoencoderKLWan):
    """A model of the family with a module of another configuration."""


def held(module: torch.nn.Module, **options: object) -> tuple[torch.nn.Module, object]:
    """Return the swapped module in a model of the family, and the handle."""
    holder = Holder(base_dim=4, z_dim=2, num_res_blocks=1, dim_mult=[1, 1]).eval().requires_grad_(False)
    holder.extra = copy.deepcopy(module)
    return holder.extra, swap(holder, **options)
