"""Wan's encoder and decoder as a whole, in channels_last_3d: activations that overwrite one another.

A module alone cannot know whether its caller still needs what it passes. Here the caller is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.layout import memory_format_of
from .coders import draws, pool_for, tensors_in, wants_gradient
from .conv import is_small
from .producers import Held
from .swap import Link
from .wan_blocks import FeatCache, FeatIdx, Way, normed, visit, why_norm_left
from .wan_conv import Features, why_conv_left


def encoder(
    module: nn.Module, link: Link, x: Tensor, feat_cache: FeatCache = None, feat_idx: FeatIdx = None
) -> Tensor:
    """`WanEncoder3d`."""
    features = Features(feat_cache, feat_idx)
    largest = module.conv_in.out_channels * x[:, 0].numel()
    if not _owns_activations(module, x, feat_cache) or is_small(link, x, largest):
        return type(module).forward(module, x, feat_cache, features.index)
    return _run(module, link, x, features, [*module.down_blocks, module.mid_block])


def decoder(
    module: nn.Module,
    link: Link,
    x: Tensor,
    feat_cache: FeatCache = None,
    feat_idx: FeatIdx = None,
    first_chunk: bool | None = None,
) -> Tensor:
    """`WanDecoder3d`; Qwen-Image's knows no `first_chunk`."""
    features = Features(feat_cache, feat_idx)
    options = {} if first_chunk is None else {"first_chunk": first_chunk}
    largest = module.conv_out.in_channels * x[:, 0].numel() * 4 ** (len(module.up_blocks) - 1)
    if not _owns_activations(module, x, feat_cache) or is_small(link, x, largest):
        return type(module).forward(module, x, feat_cache, features.index, **options)
    blocks = [module.mid_block, *module.up_blocks]
    return _run(module, link, x, features, blocks, options)


def why_coder_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this encoder or decoder, or None."""
    return why_conv_left(module.conv_in) or why_norm_left(module.norm_out) or why_conv_left(module.conv_out)


def _owns_activations(module: nn.Module, x: Tensor, feat_cache: FeatCache) -> bool:
    """Whether activations may be overwritten: otherwise each module runs as its own rule says.

    A gradient would need them; a compiler decides by itself; dropout draws in the layout that it sees.
    """
    return (
        not torch.compiler.is_compiling()
        and x.numel() > 0
        and not wants_gradient(module, (x, *tensors_in(feat_cache)))
        and not draws(module)
    )


def _run(
    module: nn.Module,
    link: Link,
    x: Tensor,
    features: Features,
    blocks: Iterable[nn.Module],
    options: dict[str, Any] | None = None,
) -> Tensor:
    pool = pool_for(x)
    way = Way(link, features, pool)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    held = Held(features.convolve(module.conv_in, link, x, pool=pool), owned=True)
    del x
    for block in blocks:
        visit(block, way, held, **({} if block is module.mid_block else options or {}))
    owned, x = held.owned, held.take()
    y = normed(module.norm_out, way, module.conv_out, x, overwrite=owned)
    del x
    out = features.convolve(module.conv_out, link, y, pool=pool, owned=True)
    return out.contiguous(memory_format=memory_format_of(module.conv_out.weight))
