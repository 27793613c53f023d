"""CogVideoX's norms and residual blocks: a norm writes where the next convolution reads, SiLU applied."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import causal_conv3d
from ..temporal import BufferPool, FrameBuffer
from .chunk_count import Low
from .cogvideox_conv import cache_fits, conv_of, take_state, why_conv_left
from .conv import convolve, is_small, why_weight_left
from .hooks import is_plain, type_name
from .low_memory import fits, residual_pair
from .norms import NormOp, backend_options, group_norm, scaled_group_norm, takes
from .producers import Held, activated, give, silu
from .swap import Link, rule_at_work, run

Cache = dict[str, Any] | None


def spatial_norm(
    module: nn.Module, link: Link, f: Tensor, zq: Tensor, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, None]]:
    """`CogVideoXSpatialNorm3D` with its two 1x1x1 convolutions before the nearest-neighbour upsampling.

    A pointwise convolution commutes with repeating pixels, so scale and shift are computed once per latent
    pixel instead of once per output pixel (64 to 256 times fewer), and no cache is kept for them.
    """
    if not _takes(module.norm_layer, f):
        return type(module).forward(module, f, zq, conv_cache)
    return _spatial(module, link, zq, f)(f, activation=None), _no_caches()


def resnet(
    module: nn.Module,
    link: Link,
    inputs: Tensor,
    temb: Tensor | None = None,
    zq: Tensor | None = None,
    conv_cache: Cache = None,
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXResnetBlock3D`: norm and SiLU write into the convolution's padded buffer."""
    if is_small(link, inputs):
        return type(module).forward(module, inputs, temb, zq, conv_cache)
    return residual_block(module, link, Held(inputs), temb, zq, conv_cache)


def why_resnet_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this block, or None."""
    return why_conv_left(module.conv1) or why_conv_left(module.conv2)


def residual_block(
    module: nn.Module,
    link: Link,
    held: Held,
    temb: Tensor | None,
    zq: Tensor | None,
    conv_cache: Cache,
    pool: BufferPool | None = None,
    low: Low | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Run a residual block; at no time are more than three activations there.

    They are the input, which is the residual, what a convolution reads, and what it writes. Where the number
    of channels changes, the shortcut's output is the residual, and an owned input is normalised in place.

    Args:
        module: A `CogVideoXResnetBlock3D`.
        link: Of its swap.
        held: The input.
        temb: As diffusers passes it.
        zq: The latents, for spatial norms.
        conv_cache: As diffusers passes it.
        pool: Where storage comes from and goes to, or None.
        low: Of a chunk that takes as little memory as it can, or None.
    """
    cache, new_cache = {} if conv_cache is None else conv_cache, {}
    owned, x = held.owned, held.take()
    if not (
        cache_fits(module.conv1, x, cache.get("conv1")) and cache_fits(module.conv2, x, cache.get("conv2"))
    ):
        return type(module).forward(module, x, temb, zq, conv_cache)
    residual, frees = x, owned
    if module.in_channels != module.out_channels:
        residual, frees = _shortcut(module, link, x, cache, new_cache), True
    norm = Norm(link, zq, cache, new_cache, pool)
    if low is not None and owned and not (module.dropout.training and module.dropout.p > 0):
        convs = conv_of(module.conv1), conv_of(module.conv2)
        norms = norm.fused(module.norm1, x), norm.fused(module.norm2, x)
        if fits(link, x, residual, convs, norms):
            held.tensor = x
            del x

            def between(hidden: Tensor) -> None:
                if temb is not None:
                    hidden.add_(module.temb_proj(F.silu(temb))[:, :, None, None, None])

            states = tuple(
                functools.partial(take_state, conv, cache, key, low)
                for conv, key in zip(convs, ("conv1", "conv2"), strict=True)
            )
            keeps = not low.last
            out, new = residual_pair(link, held, residual, convs, norms, states, between, pool, keeps=keeps)
            new_cache["conv1"], new_cache["conv2"] = new
            if zq is not None:
                new_cache["norm1"] = new_cache["norm2"] = _no_caches()
            return out, new_cache
    y = norm(module, "norm1", module.conv1, x, overwrite=owned and residual is not x)
    del x
    conv, keeps = conv_of(module.conv1), low is None or not low.last
    state = take_state(conv, cache, "conv1", low)
    hidden, new_cache["conv1"] = convolve(conv, link, y, state, pool=pool, keeps=keeps)
    del state
    give(pool, y)
    del y
    if temb is not None:
        hidden = hidden + module.temb_proj(F.silu(temb))[:, :, None, None, None]
    if module.dropout.training and module.dropout.p > 0:
        y = module.dropout(norm(module, "norm2", None, hidden))
    else:
        y = norm(module, "norm2", module.conv2, hidden, overwrite=True)
    del hidden
    conv = conv_of(module.conv2)
    state = take_state(conv, cache, "conv2", low)
    hidden, new_cache["conv2"] = convolve(conv, link, y, state, residual=residual, pool=pool, keeps=keeps)
    del state
    give(pool, y)
    if frees:
        give(pool, residual)
    return hidden, new_cache


def _shortcut(
    module: nn.Module, link: Link, x: Tensor, cache: dict[str, Any], new_cache: dict[str, Any]
) -> Tensor:
    shortcut = module.conv_shortcut
    if not module.use_conv_shortcut:
        if not is_pointwise(shortcut):
            return shortcut(x)
        return causal_conv3d(x, shortcut.weight, shortcut.bias, **backend_options(link))
    y, new_cache["conv_shortcut"] = module.conv_shortcut(x, conv_cache=cache.get("conv_shortcut"))
    return y


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is diffusers' 1x1x1 convolution, and calling it does nothing else."""
    return type_name(module) == _POINTWISE and is_plain(module, run) and why_weight_left(module) is None


@dataclass(frozen=True)
class Norm:
    """Norms followed by SiLU.

    Attributes:
        link: Of the swap.
        zq: The latents, for spatial norms.
        cache: Of the module that the norms belong to.
        new_cache: Its new cache.
        pool: Where buffers come from, or None.
    """

    link: Link
    zq: Tensor | None
    cache: dict[str, Any]
    new_cache: dict[str, Any]
    pool: BufferPool | None

    def __call__(
        self, parent: nn.Module, name: str, conv: nn.Module | None, x: Tensor, *, overwrite: bool = False
    ) -> Tensor | FrameBuffer:
        """Return SiLU of a norm of `x`, where possible in the memory that `conv` reads.

        Args:
            parent: The module that the norm belongs to.
            name: Of the norm.
            conv: What reads the result; None: anything.
            x: The activation.
            overwrite: Whether `x` may be overwritten.
        """
        module, memory = getattr(parent, name), None if conv is None else conv_of(conv)
        norm = self.fused(module, x)
        if norm is None:
            return silu(self.link, memory, self._called(module, name, x), self.pool)
        if self.zq is not None:
            self.new_cache[name] = _no_caches()
        return activated(norm, self.link, memory, x, overwrite=overwrite, pool=self.pool)

    def _called(self, norm: nn.Module, name: str, x: Tensor) -> Tensor:
        if self.zq is None:
            return norm(x)
        y, self.new_cache[name] = norm(x, self.zq, conv_cache=self.cache.get(name))
        return y

    def fused(self, norm: nn.Module, x: Tensor) -> NormOp | None:
        """Return the norm as an op, or None: the module is called."""
        if self.zq is None:
            if type_name(norm) != "GroupNorm" or not is_plain(norm, run) or not _takes(norm, x):
                return None
            return group_norm(norm, self.link)
        if rule_at_work(norm, self.link) is None or not _takes(norm.norm_layer, x):
            return None
        return _spatial(norm, self.link, self.zq, x)


def _spatial(norm: nn.Module, link: Link, zq: Tensor, x: Tensor) -> NormOp:
    """Return a `CogVideoXSpatialNorm3D` as `ops.spatial_norm`, scale and shift at latent resolution."""
    return scaled_group_norm(norm.norm_layer, link, norm.conv_y.conv(zq), norm.conv_b.conv(zq), x)


def _takes(norm: nn.GroupNorm, x: Tensor) -> bool:
    return takes((norm.weight, norm.bias), x)


_POINTWISE = "CogVideoXSafeConv3d"


def _no_caches() -> dict[str, None]:
    return {"conv_y": None, "conv_b": None}
