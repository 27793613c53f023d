"""CogVideoX's norms and residual blocks: a norm writes where the next convolution reads, SiLU applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.layout import memory_format_of
from ..ops import causal_conv3d, group_norm_silu, group_norm_silu_, spatial_norm_silu, spatial_norm_silu_
from ..temporal import BufferPool, FrameBuffer
from .cogvideox_conv import (
    cache_fits,
    convolve,
    is_small,
    may_write,
    needs_no_room,
    why_conv_left,
    why_weight_left,
)
from .hooks import is_plain, type_name
from .swap import Link, rule_at_work, run

Cache = dict[str, Any] | None


@dataclass
class Held:
    """An activation that is handed on: the one who takes it is the last to need it.

    Attributes:
        tensor: The activation; None once it was taken.
        owned: Whether it may be overwritten and its storage given to a pool, because nobody else holds it.
    """

    tensor: Tensor | None
    owned: bool = False

    def take(self) -> Tensor:
        """Return the activation and let go of it."""
        tensor, self.tensor = self.tensor, None
        return tensor


def spatial_norm(
    module: nn.Module, link: Link, f: Tensor, zq: Tensor, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, None]]:
    """`CogVideoXSpatialNorm3D` with its two 1x1x1 convolutions before the nearest-neighbour upsampling.

    A pointwise convolution commutes with repeating pixels, so scale and shift are computed once per latent
    pixel instead of once per output pixel (64 to 256 times fewer), and no cache is kept for them.
    """
    if not _takes(module.norm_layer, f):
        return type(module).forward(module, f, zq, conv_cache)
    arguments = (*_factors(module, zq), *_parameters(module.norm_layer))
    return spatial_norm_silu(f, *arguments, silu=False, **_options(module.norm_layer, link)), _no_caches()


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
    """
    cache, new_cache = conv_cache or {}, {}
    owned, x = held.owned, held.take()
    if not (
        cache_fits(module.conv1, x, cache.get("conv1")) and cache_fits(module.conv2, x, cache.get("conv2"))
    ):
        return type(module).forward(module, x, temb, zq, conv_cache)
    residual, frees = x, owned
    if module.in_channels != module.out_channels:
        residual, frees = _shortcut(module, link, x, cache, new_cache), True
    norm = Norm(link, zq, cache, new_cache, pool)
    activated = norm(module, "norm1", module.conv1, x, overwrite=owned and residual is not x)
    del x
    hidden, new_cache["conv1"] = convolve(module.conv1, link, activated, cache.get("conv1"), pool=pool)
    _give(pool, activated)
    del activated
    if temb is not None:
        hidden = hidden + module.temb_proj(F.silu(temb))[:, :, None, None, None]
    if module.dropout.training and module.dropout.p > 0:
        activated = module.dropout(norm(module, "norm2", None, hidden))
    else:
        activated = norm(module, "norm2", module.conv2, hidden, overwrite=True)
    del hidden
    hidden, new_cache["conv2"] = convolve(
        module.conv2, link, activated, cache.get("conv2"), residual=residual, pool=pool
    )
    _give(pool, activated)
    if frees:
        _give(pool, residual)
    return hidden, new_cache


def _shortcut(
    module: nn.Module, link: Link, x: Tensor, cache: dict[str, Any], new_cache: dict[str, Any]
) -> Tensor:
    shortcut = module.conv_shortcut
    if not module.use_conv_shortcut:
        if not is_pointwise(shortcut):
            return shortcut(x)
        options = {"backend": link.backend, "precision": link.precision}
        return causal_conv3d(x, shortcut.weight, shortcut.bias, **options)
    y, new_cache["conv_shortcut"] = module.conv_shortcut(x, conv_cache=cache.get("conv_shortcut"))
    return y


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is diffusers' 1x1x1 convolution, and calling it does nothing else."""
    return type_name(module) == _POINTWISE and is_plain(module, run) and why_weight_left(module) is None


def _give(pool: BufferPool | None, activation: Tensor | FrameBuffer) -> None:
    if pool is not None:
        pool.give(activation.storage if isinstance(activation, FrameBuffer) else activation)


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
        norm = getattr(parent, name)
        fused = self._fused(norm, x)
        if fused is None:
            y = self._called(norm, name, x)
            buffer = self._destination(conv, y, y.dtype, overwrite=False)  # a hook may keep it
            if buffer is None:
                return F.silu(y)
            torch.ops.aten.silu.out(y, out=buffer.body)
        else:
            op, into, arguments, options = fused
            if self.zq is not None:
                self.new_cache[name] = _no_caches()
            tensors = [a for a in arguments if isinstance(a, Tensor)]
            dtype = x.dtype if self.zq is None else torch.promote_types(x.dtype, tensors[0].dtype)
            buffer = self._destination(conv, x, dtype, *tensors, overwrite=overwrite)
            if buffer is None:
                return op(x, *arguments, **options)
            into(buffer, x, *arguments, **options)
        return buffer if buffer.head_room else buffer.storage

    def _called(self, norm: nn.Module, name: str, x: Tensor) -> Tensor:
        if self.zq is None:
            return norm(x)
        y, self.new_cache[name] = norm(x, self.zq, conv_cache=self.cache.get(name))
        return y

    def _fused(
        self, norm: nn.Module, x: Tensor
    ) -> tuple[Callable[..., Tensor], Callable[..., None], tuple[Any, ...], dict[str, Any]] | None:
        """Return the op, its twin that writes in place and their arguments, or None: the norm is called."""
        if self.zq is None:
            if type_name(norm) != "GroupNorm" or not is_plain(norm, run) or not _takes(norm, x):
                return None
            return group_norm_silu, group_norm_silu_, _parameters(norm), _options(norm, self.link)
        if rule_at_work(norm, self.link) is None or not _takes(norm.norm_layer, x):
            return None
        arguments = (*_factors(norm, self.zq), *_parameters(norm.norm_layer))
        return spatial_norm_silu, spatial_norm_silu_, arguments, _options(norm.norm_layer, self.link)

    def _destination(
        self, conv: nn.Module | None, x: Tensor, dtype: torch.dtype, *reads: Tensor, overwrite: bool
    ) -> FrameBuffer | None:
        """Return where to write what `conv` reads; None: a gradient or a compiler wants a fresh tensor."""
        if conv is None or conv.pad_mode == "replicate" or not may_write(x, *reads):
            return None
        head_room = conv.time_kernel_size - 1
        if dtype == x.dtype and needs_no_room(conv, self.link, x):
            if overwrite:
                return FrameBuffer(x, 0)
            head_room = 0
        return (self.pool or BufferPool()).take(
            x.shape, head_room=head_room, dtype=dtype, device=x.device, memory_format=memory_format_of(x)
        )


def _factors(norm: nn.Module, zq: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift at latent resolution."""
    return norm.conv_y.conv(zq), norm.conv_b.conv(zq)


def _takes(norm: nn.GroupNorm, x: Tensor) -> bool:
    """Whether the ops take this norm's parameters for `x`; otherwise the framework says what is wrong."""
    half = x.dtype in (torch.bfloat16, torch.float16)
    allowed = (x.dtype, torch.float32) if half else (x.dtype,)
    given = [p for p in (norm.weight, norm.bias) if p is not None]
    return x.numel() > 0 and all(type(p) in _PLAIN and p.dtype in allowed for p in given)


_POINTWISE = "CogVideoXSafeConv3d"
_PLAIN = (Tensor, nn.Parameter)


def _parameters(norm: nn.GroupNorm) -> tuple[Any, ...]:
    return norm.num_groups, norm.weight, norm.bias


def _options(norm: nn.GroupNorm, link: Link) -> dict[str, Any]:
    return {"eps": norm.eps, "backend": link.backend, "precision": link.precision}


def _no_caches() -> dict[str, None]:
    return {"conv_y": None, "conv_b": None}
