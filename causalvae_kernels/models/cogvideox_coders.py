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
from ..core.op import explain
from ..temporal import BufferPool
from .cogvideox_blocks import Cache, Held, Norm, residual_block
from .cogvideox_conv import convolve, is_small
from .cogvideox_resample import upsample
from .frames import knows_first_chunk
from .hooks import is_plain, type_name
from .swap import Link, rule_at_work, run


def encoder(
    module: nn.Module, link: Link, sample: Tensor, temb: Tensor | None = None, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXEncoder3D`."""
    blocks = [(f"down_block_{i}", block) for i, block in enumerate(module.down_blocks)]
    blocks.append(("mid_block", module.mid_block))
    largest = module.conv_in.conv.out_channels * sample[:, 0].numel()
    if is_small(link, sample, largest) or _keeps_activations(module, sample, blocks):
        return type(module).forward(module, sample, temb, conv_cache)
    return _run(module, link, sample, temb, conv_cache, blocks, zq=False)


def decoder(
    module: nn.Module, link: Link, sample: Tensor, temb: Tensor | None = None, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXDecoder3D`."""
    blocks = [(f"up_block_{i}", block) for i, block in enumerate(module.up_blocks)]
    samplers = [s for _, block in blocks for s in block.upsamplers or ()]
    blocks.insert(0, ("mid_block", module.mid_block))
    times = math.prod(8 if sampler.compress_time else 4 for sampler in samplers)
    largest = module.conv_out.conv.in_channels * sample[:, 0].numel() * times
    if is_small(link, sample, largest) or _keeps_activations(module, sample, blocks):
        return type(module).forward(module, sample, temb, conv_cache)
    return _run(module, link, sample, temb, conv_cache, blocks, zq=True)


def _keeps_activations(module: nn.Module, sample: Tensor, blocks: list[tuple[str, nn.Module]]) -> bool:
    """Whether a gradient needs them, a compiler decides, or dropout draws in the layout that it sees."""
    if torch.compiler.is_compiling():
        return True
    if torch.is_grad_enabled() and (
        sample.requires_grad or any(p.requires_grad for p in module.parameters())
    ):
        return True
    dropouts = (resnet.dropout for _, block in blocks for resnet in block.resnets)
    return any(dropout.training and dropout.p > 0 for dropout in dropouts)


def _run(
    module: nn.Module,
    link: Link,
    sample: Tensor,
    temb: Tensor | None,
    conv_cache: Cache,
    blocks: list[tuple[str, nn.Module]],
    *,
    zq: bool,
) -> tuple[Tensor, dict[str, Any]]:
    cache, new_cache = conv_cache or {}, {}
    sample = sample.contiguous(memory_format=_inner_format(module, link, sample))
    # On a GPU the framework's allocator keeps storage at hand by itself; autocast changes dtypes underway.
    device = sample.device.type
    pool = BufferPool() if device == "cpu" and not torch.is_autocast_enabled(device) else None
    adapts = zq and link.frames == "any" and knows_first_chunk()
    pass_ = _Pass(link, temb, sample if zq else None, pool, adapts)
    held = Held(None)
    new_cache["conv_in"] = pass_.conv(module.conv_in, sample, cache.get("conv_in"), held)
    for name, block in blocks:
        new_cache[name] = pass_.block(block, held, cache.get(name))
    out = pass_.end(module, held, cache, new_cache)
    return out.contiguous(memory_format=memory_format_of(module.conv_out.conv.weight)), new_cache


def _inner_format(module: nn.Module, link: Link, sample: Tensor) -> torch.memory_format:
    """Return the layout of all activations: channels_last_3d wherever the norms can take it.

    On a CPU the framework's GroupNorm loses digits there (5e-3 relative for randn * 0.1 + 3 in float32), ours
    does not: it has to be the one that runs. Decoding with CogVideoX-2b's widths, 3 latents of 12x18, two
    Zen 4 cores: 3.90 s in the contiguous layout and 3.62 s in this one, bfloat16 3.37 and 2.94 s.
    """
    if sample.device.type == "cuda":
        return torch.channels_last_3d
    conv = module.conv_in.conv
    shape = (sample.shape[0], conv.out_channels, *sample.shape[2:])
    example = torch.empty(shape, dtype=sample.dtype, memory_format=torch.channels_last_3d)
    groups = math.gcd(conv.out_channels, 32)
    choice = {"backend": link.backend, "precision": link.precision}
    if sample.device.type == "cpu" and explain("group_norm_silu", example, groups, **choice).chosen == "cpu":
        return torch.channels_last_3d
    return memory_format_of(conv.weight)


@dataclass(frozen=True)
class _Pass:
    """One way through a coder.

    Attributes:
        link: Of the swap.
        temb: As diffusers passes it.
        zq: The latents, for spatial norms.
        pool: Where storage comes from and goes to, or None.
        adapts: Whether the first chunk is the one without a cache, for upsamplers.
    """

    link: Link
    temb: Tensor | None
    zq: Tensor | None
    pool: BufferPool | None
    adapts: bool

    def conv(self, module: nn.Module, x: Tensor, conv_cache: Tensor | None, held: Held) -> Tensor | None:
        """Convolve in the layout of `x`; `held` gets the output. Return the new cache."""
        if rule_at_work(module, self.link) is None:
            held.tensor, new_cache = module(x, conv_cache=conv_cache)
            held.owned = False  # a hook may have kept it
        else:
            held.tensor, new_cache = convolve(module, self.link, x, conv_cache)
            held.owned = True
        return new_cache

    def block(self, module: nn.Module, held: Held, conv_cache: Cache) -> dict[str, Any]:
        """Run a block of residual blocks and samplers on the activation; return its new cache."""
        samplers = getattr(module, "upsamplers", None) or getattr(module, "downsamplers", None) or ()
        ours = all(rule_at_work(sampler, self.link) is not None for sampler in samplers)
        if not is_plain(module, run) or (self.adapts and not ours):
            tensor, new_cache = module(held.take(), self.temb, self.zq, conv_cache)
            held.tensor, held.owned = tensor, False
            return new_cache
        cache, new_cache = conv_cache or {}, {}
        for i, resnet in enumerate(module.resnets):
            key = f"resnet_{i}"
            at_work = rule_at_work(resnet, self.link) is not None
            if at_work:
                result = residual_block(
                    resnet, self.link, held, self.temb, self.zq, cache.get(key), self.pool
                )
            else:
                result = resnet(held.take(), self.temb, self.zq, conv_cache=cache.get(key))
            (held.tensor, new_cache[key]), held.owned = result, at_work
        for sampler in samplers:
            if self.pool is not None:
                self.pool.clear()
            if self.adapts:
                held.tensor = upsample(sampler, self.link, held.tensor, conv_cache is None)
            else:
                held.tensor = sampler(held.tensor)
            held.owned = ours
        return new_cache

    def end(self, module: nn.Module, held: Held, cache: dict[str, Any], new_cache: dict[str, Any]) -> Tensor:
        """Run the last norm, activation and convolution."""
        conv_cache = cache.get("conv_out")
        act, conv = module.conv_act, module.conv_out
        plain = type_name(act) == "SiLU" and is_plain(act, run)
        owned, x = held.owned, held.take()
        if plain and rule_at_work(conv, self.link) is not None:
            norm = Norm(self.link, self.zq, cache, new_cache, self.pool)
            activated = norm(module, "norm_out", conv, x, overwrite=owned)
            del x
            out, new_cache["conv_out"] = convolve(conv, self.link, activated, conv_cache)
            return out
        if self.zq is None:
            x = module.norm_out(x)
        else:
            x, new_cache["norm_out"] = module.norm_out(x, self.zq, conv_cache=cache.get("norm_out"))
        out, new_cache["conv_out"] = conv(act(x), conv_cache=conv_cache)
        return out
