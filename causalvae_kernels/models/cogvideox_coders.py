"""CogVideoX's encoder and decoder as a whole, without gradients: activations overwrite one another.

A module alone cannot know whether its caller still needs what it passes. Here the caller is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.layout import memory_format_of
from ..temporal import BufferPool
from .chunk_count import Low, next_chunk
from .coders import group_norm_format, is_bypassable, pool_for, samplers, tensors_in, wants_gradient
from .cogvideox_blocks import Cache, Norm, is_pointwise, residual_block
from .cogvideox_conv import cache_fits, conv_of, take_state
from .cogvideox_resample import upsample
from .conv import convolve, is_small
from .frames import knows_first_chunk
from .hooks import is_plain, type_name
from .producers import Held
from .swap import Link, rule_at_work, run


def encoder(
    module: nn.Module, link: Link, sample: Tensor, temb: Tensor | None = None, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXEncoder3D`."""
    low = next_chunk(link)
    blocks = {f"down_block_{i}": block for i, block in enumerate(module.down_blocks)}
    blocks["mid_block"] = module.mid_block
    if not _owns_activations(module, link, sample, temb, conv_cache, blocks):
        return type(module).forward(module, sample, temb, conv_cache)
    if is_small(link, sample, module.conv_in.conv.out_channels * sample[:, 0].numel()):
        return type(module).forward(module, sample, temb, conv_cache)
    return _run(module, link, sample, temb, conv_cache, blocks, low, zq=False)


def decoder(
    module: nn.Module, link: Link, sample: Tensor, temb: Tensor | None = None, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXDecoder3D`."""
    low = next_chunk(link)
    blocks = {f"up_block_{i}": block for i, block in enumerate(module.up_blocks)}
    blocks = {"mid_block": module.mid_block, **blocks}
    if not _owns_activations(module, link, sample, temb, conv_cache, blocks):
        return type(module).forward(module, sample, temb, conv_cache)
    times = math.prod(8 if s.compress_time else 4 for block in blocks.values() for s in samplers(block))
    if is_small(link, sample, module.conv_out.conv.in_channels * sample[:, 0].numel() * times):
        return type(module).forward(module, sample, temb, conv_cache)
    return _run(module, link, sample, temb, conv_cache, blocks, low, zq=True)


def _owns_activations(
    module: nn.Module,
    link: Link,
    sample: Tensor,
    temb: Tensor | None,
    conv_cache: Cache,
    blocks: dict[str, nn.Module],
) -> bool:
    """Whether nobody but us can see an activation: otherwise each module runs as its own rule says.

    A gradient would need them; a compiler decides by itself; dropout draws in the layout that it sees; and a
    hook or a foreign module on the way may keep what it is given.
    """
    cache = conv_cache or {}
    return (
        not torch.compiler.is_compiling()
        and sample.numel() > 0
        and (temb is None or not temb.requires_grad)
        and not wants_gradient(module, (sample, *tensors_in(cache)))
        and all(_block_at_work(block, link) for block in blocks.values())
        and _norm_at_work(module.norm_out, link)
        and type_name(module.conv_act) == "SiLU"
        and is_plain(module.conv_act, run)
        and all(rule_at_work(conv, link) is not None for conv in (module.conv_in, module.conv_out))
        and cache_fits(module.conv_in, sample, cache.get("conv_in"))
    )


def _block_at_work(block: nn.Module, link: Link) -> bool:
    if type_name(block) not in _BLOCKS or not is_bypassable(block):
        return False
    return all(rule_at_work(sampler, link) is not None for sampler in samplers(block)) and all(
        _resnet_at_work(resnet, link) for resnet in block.resnets
    )


def _resnet_at_work(resnet: nn.Module, link: Link) -> bool:
    if rule_at_work(resnet, link) is None or not is_bypassable(resnet):
        return False
    if resnet.dropout.training and resnet.dropout.p > 0:
        return False
    if resnet.in_channels != resnet.out_channels:
        shortcut = resnet.conv_shortcut
        ours = (
            rule_at_work(shortcut, link) is not None if resnet.use_conv_shortcut else is_pointwise(shortcut)
        )
        if not ours:
            return False
    return _norm_at_work(resnet.norm1, link) and _norm_at_work(resnet.norm2, link)


def _norm_at_work(norm: nn.Module, link: Link) -> bool:
    if type_name(norm) == "GroupNorm":
        return is_plain(norm, run)
    return rule_at_work(norm, link) is not None


_BLOCKS = ("CogVideoXDownBlock3D", "CogVideoXMidBlock3D", "CogVideoXUpBlock3D")


def _run(
    module: nn.Module,
    link: Link,
    sample: Tensor,
    temb: Tensor | None,
    conv_cache: Cache,
    blocks: dict[str, nn.Module],
    low: Low | None,
    *,
    zq: bool,
) -> tuple[Tensor, dict[str, Any]]:
    cache, new_cache = {} if conv_cache is None else conv_cache, {}
    keeps = low is None or not low.last
    conv = module.conv_in.conv
    inner = group_norm_format(conv, math.gcd(conv.out_channels, 32), link, sample)
    sample, pool = sample.contiguous(memory_format=inner), pool_for(sample)
    pass_ = _Pass(
        link, temb, sample if zq else None, pool, zq and link.frames == "any" and knows_first_chunk(), low
    )
    conv = conv_of(module.conv_in)
    state = take_state(conv, cache, "conv_in", low)
    x, new_cache["conv_in"] = convolve(conv, link, sample, state, keeps=keeps)
    del state
    held = Held(x, owned=True)
    del x
    for name, block in blocks.items():
        new_cache[name] = pass_.block(block, held, cache.get(name))
    norm = Norm(link, pass_.zq, cache, new_cache, pool)
    y, conv = norm(module, "norm_out", module.conv_out, held.take(), overwrite=True), conv_of(module.conv_out)
    state = take_state(conv, cache, "conv_out", low)
    out, new_cache["conv_out"] = convolve(conv, link, y, state, keeps=keeps)
    return out.contiguous(memory_format=memory_format_of(conv.weight)), new_cache


@dataclass(frozen=True)
class _Pass:
    """One way through a coder all of whose modules are at work.

    Attributes:
        link: Of the swap.
        temb: As diffusers passes it.
        zq: The latents, for spatial norms.
        pool: Where storage comes from and goes to, or None.
        adapts: Whether the first chunk is the one without a cache, for upsamplers.
        low: Of a chunk that takes as little memory as it can, or None.
    """

    link: Link
    temb: Tensor | None
    zq: Tensor | None
    pool: BufferPool | None
    adapts: bool
    low: Low | None = None

    def block(self, module: nn.Module, held: Held, conv_cache: Cache) -> dict[str, Any]:
        """Run a block of residual blocks and samplers on the activation; return its new cache."""
        cache, new_cache = {} if conv_cache is None else conv_cache, {}
        for i, resnet in enumerate(module.resnets):
            key = f"resnet_{i}"
            held.tensor, new_cache[key] = residual_block(
                resnet, self.link, held, self.temb, self.zq, cache.get(key), self.pool, self.low
            )
        for sampler in samplers(module):
            if self.pool is not None:
                self.pool.clear()
            if self.adapts:
                held.tensor = upsample(sampler, self.link, held.tensor, conv_cache is None)
            else:
                held.tensor = sampler(held.tensor)
        return new_cache
