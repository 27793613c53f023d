"""CogVideoX's encoder and decoder as schedules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..coder import Schedule, Steps, Unreadable, Value
from ..coder.steps import of_one_frame, weights
from ..core.layout import memory_format_of
from ..core.op import op_named
from . import scheduled
from .chunk_count import Chunk, next_chunk
from .coders import group_norm_format, is_bypassable, samplers
from .cogvideox_conv import conv_of
from .conv import why_weight_left
from .frames import knows_first_chunk
from .hooks import is_plain, type_name
from .norms import takes_values
from .swap import Link, rule_at_work, run

Cache = dict[str, Any] | None
Key = tuple[str, ...]


def encoder(
    module: nn.Module, link: Link, sample: Tensor, temb: Tensor | None = None, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXEncoder3D`: runs as a schedule, chunk by chunk."""
    blocks = {**_numbered("down_block", module.down_blocks), "mid_block": module.mid_block}
    return _run(module, link, sample, temb, conv_cache, blocks, zq=False)


def decoder(
    module: nn.Module, link: Link, sample: Tensor, temb: Tensor | None = None, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXDecoder3D`: runs as a schedule, chunk by chunk."""
    blocks = {"mid_block": module.mid_block, **_numbered("up_block", module.up_blocks)}
    return _run(module, link, sample, temb, conv_cache, blocks, zq=True)


def _numbered(name: str, modules: Iterable[nn.Module]) -> dict[str, nn.Module]:
    return {f"{name}_{i}": module for i, module in enumerate(modules)}


def _run(
    module: nn.Module,
    link: Link,
    sample: Tensor,
    temb: Tensor | None,
    conv_cache: Cache,
    blocks: dict[str, nn.Module],
    *,
    zq: bool,
) -> tuple[Tensor, dict[str, Any]]:
    chunk = next_chunk(link)
    adapts = zq and link.frames == "any" and knows_first_chunk()

    def read(steps: Steps, x: Value) -> None:
        _Reader(link, steps, x if zq else None, adapts).coder(module, x, blocks)

    def layout() -> torch.memory_format:
        conv = module.conv_in.conv
        return group_norm_format(conv, math.gcd(conv.out_channels, 32), link, sample)

    schedule = None
    if temb is None:
        first = not conv_cache
        schedule = scheduled.find(
            module, link, sample, read, first=first, memory_format=layout, others=(adapts,)
        )
    if schedule is not None:
        states = _states(schedule, conv_cache, chunk)
        if states is not None:
            done = scheduled.run(schedule, link, sample, states, keeps=not chunk.last)
            if done is not None:
                return done[0], _nested(schedule, done[1])
    return type(module).forward(module, sample, temb, conv_cache)


def _states(schedule: Schedule, cache: Cache, chunk: Chunk) -> list[Any] | None:
    """Return the states that a cache holds, or None where they are not those of the schedule."""
    found: list[Any] = []
    for key in schedule.slots:
        part: Any = cache
        for name in key:
            part = part.get(name) if part else None
        found.append(part)
    if not scheduled.states_fit(schedule, found):
        return None
    if chunk.owns_cache and cache and not schedule.calls_others:
        cache.clear()  # so that each of them can go when it was read; what others make may end the run
    return found


def _nested(schedule: Schedule, states: list[Any] | None) -> dict[str, Any]:
    """Return states as the cache that the modules would have made."""
    cache: dict[str, Any] = {}
    for key, state in zip(schedule.slots, states or (), strict=False):
        part = cache
        for name in key[:-1]:
            part = part.setdefault(name, {})
        part[key[-1]] = state
    return cache


@dataclass(frozen=True)
class _Reader:
    """Goes through a coder's modules as their `forward` does.

    Attributes:
        link: Of the swap.
        steps: What was read.
        zq: The latents, for spatial norms, or None.
        adapts: Whether the first chunk is the one without a cache, for upsamplers.
        trusts: Whether modules are taken for what their class says: to know what shape one makes that is
            called.
    """

    link: Link
    steps: Steps
    zq: Value | None
    adapts: bool
    trusts: bool = False

    def coder(self, module: nn.Module, x: Value, blocks: dict[str, nn.Module]) -> None:
        x = self.conv(module.conv_in, x, ("conv_in",), None)
        for name, block in blocks.items():
            x = self.block(block, x, (name,))
        y = self.activated(module, "norm_out", module.conv_act, x, ())
        y = self.conv(module.conv_out, y, ("conv_out",), None)
        self.steps.returns(y, memory_format_of(module.conv_out.conv.weight))

    def block(self, module: nn.Module, x: Value, key: Key) -> Value:
        """A down, middle or up block: residual blocks, and what changes the resolution."""
        if type_name(module) not in _BLOCKS:
            raise Unreadable(f"{_path(key)} is a {type_name(module)}")
        if not (self.trusts or is_bypassable(module)):
            return self.part(module, x, key, lambda r, x: r.block(module, x, key))
        for i, resnet in enumerate(module.resnets):
            x = self.resnet(resnet, x, (*key, f"resnet_{i}"))
        for sampler in samplers(module):
            x = self.resample(sampler, x, key)
        return x

    def resnet(self, module: nn.Module, x: Value, key: Key) -> Value:
        """A residual block; where the number of channels changes, the shortcut's output is the residual."""
        if type_name(module) != "CogVideoXResnetBlock3D":
            raise Unreadable(f"{_path(key)} is a {type_name(module)}")
        if not self.trusts and (not is_bypassable(module) or _draws(module.dropout)):
            return self.part(module, x, key, lambda r, x: r.resnet(module, x, key))
        residual = x
        if module.in_channels != module.out_channels:
            residual = self.shortcut(module, x, key)
        y = self.activated(module, "norm1", module.nonlinearity, x, key)
        y = self.conv(module.conv1, y, (*key, "conv1"), module.out_channels)
        y = self.activated(module, "norm2", module.nonlinearity, y, key)
        return self.conv(module.conv2, y, (*key, "conv2"), module.out_channels, residual)

    def shortcut(self, module: nn.Module, x: Value, key: Key) -> Value:
        shortcut, key = module.conv_shortcut, (*key, "conv_shortcut")
        if module.use_conv_shortcut:
            return self.conv(shortcut, x, key, module.out_channels)
        if not self.trusts and not is_pointwise(shortcut):
            shape = (x.shape[0], module.out_channels, *x.shape[2:])
            return self.steps.call(_path(key), lambda x, _: (shortcut(x), []), x, shape=shape)
        return self.pointwise(shortcut, x, _path(key))

    def pointwise(self, module: nn.Module, x: Value, path: str) -> Value:
        operands = (x, *weights(module, "weight", "bias"), None, None)
        return self.steps.op(path, op_named("causal_conv3d"), operands, _POINTWISE)

    def conv(
        self, module: nn.Module, x: Value, key: Key, channels: int | None, residual: Value | None = None
    ) -> Value:
        """A causal convolution; where it must be called, to so many channels, its own if None is given."""
        if not (self.trusts or (rule_at_work(module, self.link) is not None and is_bypassable(module))):
            if channels is None:
                if type_name(module) != _CONV:
                    raise Unreadable(f"{_path(key)} is a {type_name(module)}")
                channels = module.conv.out_channels
            shape = (x.shape[0], channels, *x.shape[2:])
            y = self.called(x, key, shape, lambda x, cache: module(x, conv_cache=cache))
            return y if residual is None else self.added(y, residual, key)
        conv = conv_of(module)
        state = None
        if conv.streams:
            state = self.steps.state(key, x, conv.head_room, conv.temporal_mode)
        operands = (x, *weights(module.conv, "weight", "bias"), state, residual)
        options = (conv.stride, _ONES, conv.temporal_mode, conv.spatial_mode)
        return self.steps.op(_path(key), op_named("causal_conv3d"), operands, options, state)

    def activated(self, parent: nn.Module, name: str, silu: nn.Module, x: Value, key: Key) -> Value:
        """A norm of `parent` with SiLU behind it."""
        norm, key = getattr(parent, name), (*key, name)
        fused = self.trusts or (type_name(silu) == "SiLU" and is_bypassable(silu))
        if self.trusts or self.is_norm(norm, x):
            y = self.norm(norm, x, _path(key), "silu" if fused else None)
            if fused:
                return y
        elif self.zq is None:
            y = self.called(x, key, x.shape, lambda x, _: (norm(x), None))
        else:
            y = self.called(x, key, x.shape, lambda x, zq, cache: norm(x, zq, conv_cache=cache), self.zq)
        return self.steps.call(_path(key), lambda x, _: (silu(x), []), y, keeps=not fused)

    def is_norm(self, norm: nn.Module, x: Value) -> bool:
        """Whether a norm need not be called."""
        if self.zq is None:
            return (
                type_name(norm) == "GroupNorm"
                and is_bypassable(norm)
                and takes_values((norm.weight, norm.bias), x.dtype)
            )
        inner = norm.norm_layer
        return (
            rule_at_work(norm, self.link) is not None
            and is_bypassable(norm)
            and takes_values((inner.weight, inner.bias), x.dtype)
            and norm.conv_y.conv.weight.dtype == norm.conv_b.conv.weight.dtype == x.dtype
        )

    def norm(self, module: nn.Module, x: Value, path: str, activation: str | None) -> Value:
        if self.zq is None:
            operands = (x, *weights(module, "weight", "bias"))
            options = (module.num_groups, module.eps, activation)
            return self.steps.op(path, op_named("group_norm"), operands, options)
        # A pointwise convolution commutes with repeating pixels: once per latent pixel, not per output pixel.
        scale = self.pointwise(module.conv_y.conv, self.zq, f"{path}.conv_y")
        shift = self.pointwise(module.conv_b.conv, self.zq, f"{path}.conv_b")
        inner = module.norm_layer
        operands = (x, scale, shift, *weights(inner, "weight", "bias"))
        options = (inner.num_groups, inner.eps, activation)
        return self.steps.op(path, op_named("spatial_norm"), operands, options)

    def resample(self, module: nn.Module, x: Value, key: Key) -> Value:
        path = f"{_path(key)}.{'down' if 'Downsample' in type_name(module) else 'up'}samplers.0"
        if not (self.trusts or (rule_at_work(module, self.link) is not None and is_bypassable(module))):
            if self.adapts:
                raise Unreadable(f"{path} must be called, which takes an odd chunk for the first one")
            shape = self.shape_of(lambda r, x: r.resample(module, x, key), x)
            return self.steps.call(path, lambda x, _: (module(x), []), x, shape=shape)
        operands = (x, *weights(module.conv, "weight", "bias", views=_IMAGE))
        if "Downsample" in type_name(module):
            return self.steps.op(path, op_named("downsample_conv"), operands, (module.compress_time,))
        first = self.steps.first if self.adapts else x.shape[2] % 2 == 1
        options = ((2 if module.compress_time else 1, 2, 2), first, "replicate", "zeros")
        return self.steps.op(path, op_named("upsample_conv"), (*operands, None), options)

    def added(self, y: Value, residual: Value, key: Key) -> Value:
        return self.steps.call(_path(key), lambda y, r, _: (y + r, []), y, residual, keeps=False)

    def part(self, module: nn.Module, x: Value, key: Key, read: Callable[[_Reader, Value], Value]) -> Value:
        """A block that must be called; there is no time embedding."""
        shape = self.shape_of(read, x)
        if self.zq is None:
            return self.called(x, key, shape, lambda x, cache: module(x, None, None, conv_cache=cache))
        return self.called(x, key, shape, lambda x, zq, cache: module(x, None, zq, conv_cache=cache), self.zq)

    def called(
        self,
        x: Value,
        key: Key,
        shape: tuple[int, ...],
        call: Callable[..., tuple[Tensor, Any]],
        *others: Value,
    ) -> Value:
        """What must be called, with its part of the cache."""

        def with_cache(*arguments: Any) -> tuple[Tensor, list[Any]]:
            *values, (cache,) = arguments
            y, cache = call(*values, cache)
            return y, [cache]

        return self.steps.call(_path(key), with_cache, x, *others, shape=shape, keys=(key,))

    def shape_of(self, read: Callable[[_Reader, Value], Value], x: Value) -> tuple[int, ...]:
        """Return the shape of what would be read."""
        trial = Steps(self.steps.memory_format, self.steps.first, count=self.steps.count)
        return read(replace(self, steps=trial, trusts=True), x).shape


def _path(key: Key) -> str:
    """Return the path of the module that a key of the cache stands for: up_block_0 is up_blocks.0."""
    return ".".join(_NUMBERED.sub(r"\1s.\2", name) for name in key)


_NUMBERED = re.compile(r"(.+_block|resnet)_(\d+)")


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is diffusers' 1x1x1 convolution, and calling it does nothing else."""
    return (
        type_name(module) == "CogVideoXSafeConv3d"
        and is_plain(module, run)
        and why_weight_left(module) is None
    )


def _draws(dropout: nn.Module) -> bool:
    """Whether dropout must be called: it is on, or somebody looks on."""
    return not is_plain(dropout, run) or (dropout.training and dropout.p > 0)


_CONV = "CogVideoXCausalConv3d"
_BLOCKS = ("CogVideoXDownBlock3D", "CogVideoXMidBlock3D", "CogVideoXUpBlock3D")
_IMAGE = {"weight": of_one_frame}
_ONES = (1, 1, 1)
_POINTWISE = (_ONES, _ONES, "replicate", "zeros")
