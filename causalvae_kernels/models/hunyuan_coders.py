"""The Hunyuan VAEs' encoders and decoders as a whole, without gradients: activations overwrite one another.

A module alone cannot know whether its caller still needs what it passes. Here the caller is ours. Attention
blocks are called as they are, in whatever layout the activations have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.layout import memory_format_of
from ..temporal import BufferPool
from .coders import is_bypassable, pool_for, samplers, wants_gradient
from .conv import convolve, is_small
from .hooks import is_plain, type_name
from .hunyuan_blocks import NormOf, normed, residual_block
from .hunyuan_conv import conv_of, shortcut_of
from .producers import Held
from .swap import Link, rule_at_work, run


@dataclass(frozen=True)
class Coder:
    """What the coders of one family are made of.

    Attributes:
        norm_out: Name of the last norm.
        norm_of: Returns a norm as an op, or None.
        blocks: Classes of the blocks, whose forward is bypassed.
        attend: `attend(attention, x)` calls an attention block of the middle.
        growth: Returns how many output pixels an upsampler makes of one.
        inner_format: `inner_format(module, link, sample)` returns the layout of all activations.
        shortcuts: Whether the encoder's latents and the decoder's first activation have a shortcut.
    """

    norm_out: str
    norm_of: NormOf
    blocks: tuple[str, ...]
    attend: Callable[[nn.Module, Tensor], Tensor]
    growth: Callable[[nn.Module], int]
    inner_format: Callable[[nn.Module, Link, Tensor], torch.memory_format]
    shortcuts: bool = False

    def encode(self, module: nn.Module, link: Link, sample: Tensor) -> Tensor:
        """Run an encoder; as its class does where an activation is not ours alone."""
        blocks = (*module.down_blocks, module.mid_block)
        if not self._owns_activations(module, link, sample, blocks):
            return type(module).forward(module, sample)
        if is_small(link, sample, module.conv_in.conv.out_channels * sample[:, 0].numel()):
            return type(module).forward(module, sample)
        pass_ = _Pass(self, link, pool_for(sample))
        held = pass_.first(module, sample)
        pass_.blocks(blocks, held)
        x = held.take()
        latents = x.unflatten(1, (-1, module.group_size)).mean(dim=2) if self.shortcuts else None
        return pass_.last(module, Held(x, owned=True), residual=latents)

    def decode(self, module: nn.Module, link: Link, sample: Tensor) -> Tensor:
        """Run a decoder; as its class does where an activation is not ours alone."""
        blocks = (module.mid_block, *module.up_blocks)
        if not self._owns_activations(module, link, sample, blocks):
            return type(module).forward(module, sample)
        growth = math.prod(self.growth(sampler) for block in blocks for sampler in samplers(block))
        if is_small(link, sample, module.conv_out.conv.in_channels * sample[:, 0].numel() * growth):
            return type(module).forward(module, sample)
        pass_ = _Pass(self, link, pool_for(sample))
        held = pass_.first(module, sample)
        if self.shortcuts:
            # The convolution's output is ours; under autocast it is the narrower of the two.
            held.tensor = held.tensor.to(torch.promote_types(held.tensor.dtype, sample.dtype))
            held.tensor.unflatten(1, (-1, module.repeat)).add_(sample.unsqueeze(2))
        pass_.blocks(blocks, held)
        return pass_.last(module, held)

    def _owns_activations(
        self, module: nn.Module, link: Link, sample: Tensor, blocks: Iterable[nn.Module]
    ) -> bool:
        """Whether nobody but us can see an activation: otherwise each module runs as its own rule says.

        A gradient would need them; a compiler decides by itself; dropout draws in the layout that it sees;
        and a hook or a foreign module on the way may keep what it is given.
        """
        return (
            not torch.compiler.is_compiling()
            and sample.numel() > 0
            and not wants_gradient(module, (sample,))
            and all(self._block_at_work(block, link) for block in blocks)
            and self._norm_at_work(getattr(module, self.norm_out), link)
            and type_name(module.conv_act) == "SiLU"
            and is_plain(module.conv_act, run)
            and all(rule_at_work(conv, link) is not None for conv in (module.conv_in, module.conv_out))
        )

    def _block_at_work(self, block: nn.Module, link: Link) -> bool:
        if type_name(block) not in self.blocks or not is_bypassable(block):
            return False
        return all(rule_at_work(sampler, link) is not None for sampler in samplers(block)) and all(
            self._resnet_at_work(resnet, link) for resnet in block.resnets
        )

    def _resnet_at_work(self, resnet: nn.Module, link: Link) -> bool:
        if rule_at_work(resnet, link) is None or not is_bypassable(resnet):
            return False
        dropout, shortcut = resnet._modules.get("dropout"), resnet.conv_shortcut
        if dropout is not None and dropout.training and dropout.p > 0:
            return False
        if shortcut is not None and shortcut_of(shortcut, link) is None:
            return False
        return self._norm_at_work(resnet.norm1, link) and self._norm_at_work(resnet.norm2, link)

    def _norm_at_work(self, norm: nn.Module, link: Link) -> bool:
        if type_name(norm) == "GroupNorm":
            return is_plain(norm, run)
        return rule_at_work(norm, link) is not None


@dataclass(frozen=True)
class _Pass:
    """One way through a coder all of whose modules are at work.

    Attributes:
        coder: Its family's.
        link: Of the swap.
        pool: Where storage comes from and goes to, or None.
    """

    coder: Coder
    link: Link
    pool: BufferPool | None

    def first(self, module: nn.Module, sample: Tensor) -> Held:
        """Run the first convolution, in the layout of all activations."""
        inner = self.coder.inner_format(module, self.link, sample)
        sample = sample.contiguous(memory_format=inner)
        return Held(convolve(conv_of(module.conv_in), self.link, sample)[0], owned=True)

    def blocks(self, blocks: Iterable[nn.Module], held: Held) -> None:
        """Run blocks of residual blocks, attention blocks and samplers on the activation."""
        for block in blocks:
            attentions = iter(getattr(block, "attentions", ()))
            for i, resnet in enumerate(block.resnets):
                attention = next(attentions, None) if i else None
                if attention is not None:  # a hook on it may keep what goes in and what comes out
                    held.tensor, held.owned = self.coder.attend(attention, held.take()), False
                held.tensor = residual_block(resnet, self.link, held, self.coder.norm_of, self.pool)
                held.owned = True
            for sampler in samplers(block):
                if self.pool is not None:
                    self.pool.clear()
                held.tensor = sampler(held.tensor)

    def last(self, module: nn.Module, held: Held, residual: Tensor | None = None) -> Tensor:
        """Run the last norm and convolution; return the result in the layout of the weights."""
        norm, conv = getattr(module, self.coder.norm_out), conv_of(module.conv_out)
        y = normed(norm, self.coder.norm_of, self.link, conv, held.take(), overwrite=True, pool=self.pool)
        out, _ = convolve(conv, self.link, y, residual=residual)
        return out.contiguous(memory_format=memory_format_of(conv.weight))
