"""Wan's encoder and decoder as schedules, and those of the models that took over its code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..coder import Schedule, Steps, Unreadable, Value, View
from ..coder.steps import of_one_frame, outputs_of, weights
from ..core.layout import memory_format_of
from ..core.op import op_named
from ..temporal.state import behind_zeros
from . import scheduled
from .clip_state import Carried, LastRead
from .coders import draws, is_bypassable
from .hooks import is_plain, type_name
from .norms import takes_values
from .swap import Link, rule_at_work, run
from .wan_conv import FeatCache, FeatIdx, conv_of, is_2d, last_frames, why_conv_left
from .wan_norm import why_norm_left
from .wan_resample import FIRST
from .wan_shortcuts import add_averaged, add_repeated, averaged


def encoder(
    module: nn.Module, link: Link, x: Tensor, feat_cache: FeatCache = None, feat_idx: FeatIdx = None
) -> Tensor:
    """`WanEncoder3d`: runs as a schedule, one or several latents at a time."""
    return _run(module, link, x, feat_cache, feat_idx, {})


def decoder(
    module: nn.Module,
    link: Link,
    x: Tensor,
    feat_cache: FeatCache = None,
    feat_idx: FeatIdx = None,
    first_chunk: bool | None = None,
) -> Tensor:
    """`WanDecoder3d`: runs as a schedule, one or several latents at a time.

    Qwen-Image's knows no `first_chunk`.
    """
    options = {} if first_chunk is None else {"first_chunk": first_chunk}
    return _run(module, link, x, feat_cache, feat_idx, options)


def schedule_of(
    module: nn.Module, link: Link, x: Tensor, *, first: bool = False, first_chunk: bool | None = None
) -> Schedule | None:
    """Return the schedule of an encoder or decoder for a chunk like this one, or None.

    Args:
        module: The encoder or decoder.
        link: Of its swap.
        x: The chunk.
        first: Whether nothing is cached yet.
        first_chunk: What the decoder is told, or None.
    """
    if rule_at_work(module, link) is None:
        return None

    def read(steps: Steps, x: Value) -> None:
        if draws(module):
            raise Unreadable("dropout draws in the layout that it sees")
        _Reader(link, steps, first_chunk).coder(module, x)

    others = (first_chunk,)
    return scheduled.find(*(module, link, x, read), first=first, others=others)


def why_coder_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this encoder or decoder, or None."""
    return why_conv_left(module.conv_in) or why_norm_left(module.norm_out) or why_conv_left(module.conv_out)


def _run(
    module: nn.Module,
    link: Link,
    x: Tensor,
    cache: FeatCache,
    index: FeatIdx,
    options: dict[str, bool],
) -> Tensor:
    index = [0] if index is None else index
    if cache is not None:
        places = cache[index[0] :]
        first = all(place is None for place in places)
        schedule = schedule_of(module, link, x, first=first, **options)
        states = None if schedule is None else _states(schedule, places, first)
        keeps = not isinstance(cache, LastRead)
        done = None if states is None else scheduled.run(schedule, link, x, states, keeps=keeps)
        if done is not None:
            y, new = done
            if new is not None:
                cache[index[0] : index[0] + len(new)] = new
            index[0] += len(schedule.slots)
            return y
    return type(module).forward(module, x, cache, index, **options)


def _states(schedule: Schedule, places: Sequence[Any], first: bool) -> list[Any] | None:
    """Return the states in the places of a feature cache; None where they are not those of the schedule."""
    if len(places) < len(schedule.slots):
        return None
    if first:
        return [None] * len(schedule.slots)
    found = [
        place if expected is None else _behind_zeros(place, expected[0])
        for place, expected in zip(places, schedule.states, strict=False)
    ]
    return found if scheduled.states_fit(schedule, found) else None


def _behind_zeros(place: Any, shape: tuple[int, ...]) -> Any:
    """Return the frames in a place of the cache behind as many zeros as the state has frames more."""
    if isinstance(place, str) and place == FIRST:
        return None
    if not isinstance(place, Tensor) or place.dim() != 5 or place.shape[2] >= shape[2]:
        # A convolution over pairs of frames looks at the last one alone.
        return place[:, :, -1:] if isinstance(place, Tensor) and shape[2] == 1 else place
    return behind_zeros(place, shape[2] - place.shape[2])


@dataclass(frozen=True)
class _Reader:
    """Goes through a coder's modules as their `forward` does, a feature cache being there.

    Attributes:
        link: Of the swap.
        steps: What was read.
        first_chunk: What the decoder was told of the chunk; None: nothing.
        trusts: Whether modules are taken for what their class says: to know what shape one makes that is
            called.
    """

    link: Link
    steps: Steps
    first_chunk: bool | None
    trusts: bool = False

    def coder(self, module: nn.Module, x: Value) -> None:
        blocks = {"mid_block": module.mid_block}
        if hasattr(module, "up_blocks"):
            blocks |= {f"up_blocks.{i}": block for i, block in enumerate(module.up_blocks)}
        else:
            blocks = {f"down_blocks.{i}": block for i, block in enumerate(module.down_blocks)} | blocks
        x = self.conv(module.conv_in, x, "conv_in")
        for path, block in blocks.items():
            x = self.visit(block, x, path)
        y = self.norm(module.norm_out, x, "norm_out")
        y = self.conv(module.conv_out, y, "conv_out")
        self.steps.returns(y, memory_format_of(module.conv_out.weight))

    def visit(self, module: nn.Module, x: Value, path: str) -> Value:
        """A module of one of the classes below."""
        kind = _kind(module)
        if kind == "AttentionBlock":
            known = all(map(is_bypassable, module.modules()))
            return self.steps.call(path, lambda x, _: (module(x), []), x, keeps=not known)
        read = _READS.get(kind)
        if read is None:
            raise Unreadable(f"{path} is a {type_name(module)}")
        if self.trusts or self.is_at_work(module, kind):
            return read(self, module, x, path)
        trial = Steps(self.steps.memory_format, self.steps.first, count=self.steps.count)
        shape = read(replace(self, steps=trial, trusts=True), module, x, path).shape
        tells = self.first_chunk is not None and kind in ("UpBlock", "ResidualUpBlock")
        options = {"first_chunk": self.first_chunk} if tells else {}

        def call(x: Tensor, past: list[Any]) -> tuple[Tensor, list[Any]]:
            cache = Carried(past)
            return module(x, feat_cache=cache, feat_idx=Carried([0]), **options), cache

        return self.steps.call(path, call, x, shape=shape, keys=trial.slots)

    def is_at_work(self, module: nn.Module, kind: str) -> bool:
        """Whether a module need not be called."""
        if not is_bypassable(module):
            return False
        if kind == "CausalConv3d" or kind in _RULES:
            return rule_at_work(module, self.link) is not None
        return True

    def conv(self, module: nn.Module, x: Value, path: str, residual: Value | None = None) -> Value:
        """A causal convolution with a place in the cache."""
        if not (self.trusts or self.is_at_work(module, "CausalConv3d")):
            y = self.called(module, x, path)
            return y if residual is None else self.added(y, residual, path)
        conv = conv_of(module)
        frames = conv.head_room if conv.temporal_mode == "zeros" else 0
        if is_2d(module) and x.shape[2] > 1:
            raise Unreadable(f"{path} convolves single images")
        state = self.steps.state(path, x, frames, "zeros") if frames else None
        if not frames:
            self.steps.keep(path, x, self.steps.state(path, x, 2, "zeros"))
        operands = (x, *weights(module, "weight", "bias", views=_views(module)), state, residual)
        options = (conv.stride, _ONES, conv.temporal_mode, conv.spatial_mode)
        return self.steps.op(path, op_named("causal_conv3d"), operands, options, state)

    def called(self, module: nn.Module, x: Value, path: str) -> Value:
        """A convolution that must be called, with the frames before; the block around it keeps its own."""
        channels = getattr(module, "out_channels", None)
        if channels is None:
            raise Unreadable(f"{path} is a {type_name(module)}")

        def call(x: Tensor, past: list[Any]) -> tuple[Tensor, list[Any]]:
            return module(x, past[0]), [last_frames(x, past[0])]

        return self.steps.call(path, call, x, shape=(x.shape[0], channels, *x.shape[2:]), keys=(path,))

    def norm(self, module: nn.Module, x: Value, path: str) -> Value:
        """A norm with SiLU behind it."""
        bias = module.bias if isinstance(module.bias, Tensor) else None
        at_work = self.trusts or (
            is_bypassable(module)
            and rule_at_work(module, self.link) is not None
            and takes_values((module.gamma, bias), x.dtype)
            and module.gamma.dtype == x.dtype
            and (bias is None or bias.dtype == x.dtype)
        )
        if not at_work:
            y = self.steps.call(path, lambda x, _: (module(x), []), x)
            silu = torch.nn.functional.silu
            return self.steps.call(path, lambda x, _: (silu(x), []), y, keeps=False)
        operands = (x, *weights(module, "gamma", "bias", views={"gamma": _flat, "bias": _flat}))
        return self.steps.op(path, op_named("rms_norm"), operands, (0.0, "silu"))

    def residual_block(self, module: nn.Module, x: Value, path: str) -> Value:
        """Norm, convolution, norm, convolution, which adds the shortcut."""
        if not self.trusts and not (
            type_name(module.nonlinearity) == "SiLU"
            and is_bypassable(module.nonlinearity)
            and is_plain(module.dropout, run)
        ):
            raise Unreadable(f"{path} has an activation or dropout that must be called")
        residual = self.shortcut(module.conv_shortcut, x, f"{path}.conv_shortcut")
        y = self.norm(module.norm1, x, f"{path}.norm1")
        y = self.conv(module.conv1, y, f"{path}.conv1")
        y = self.norm(module.norm2, y, f"{path}.norm2")
        return self.conv(module.conv2, y, f"{path}.conv2", residual)

    def shortcut(self, module: nn.Module, x: Value, path: str) -> Value:
        """What goes past a residual block; it has no place in the cache."""
        if type_name(module) == "Identity" and (self.trusts or is_plain(module, run)):
            return x
        if not (self.trusts or self.is_at_work(module, "CausalConv3d")):
            channels = getattr(module, "out_channels", x.shape[1])
            shape = (x.shape[0], channels, *x.shape[2:])
            return self.steps.call(path, lambda x, _: (module(x), []), x, shape=shape)
        conv = conv_of(module)
        operands = (x, *weights(module, "weight", "bias", views=_views(module)), None, None)
        options = (conv.stride, _ONES, conv.temporal_mode, conv.spatial_mode)
        return self.steps.op(path, op_named("causal_conv3d"), operands, options)

    def mid_block(self, module: nn.Module, x: Value, path: str) -> Value:
        x = self.visit(module.resnets[0], x, f"{path}.resnets.0")
        for i, (attention, block) in enumerate(zip(module.attentions, module.resnets[1:], strict=True)):
            if attention is not None:
                x = self.visit(attention, x, f"{path}.attentions.{i}")
            x = self.visit(block, x, f"{path}.resnets.{i + 1}")
        return x

    def up_block(self, module: nn.Module, x: Value, path: str) -> Value:
        for i, block in enumerate(module.resnets):
            x = self.visit(block, x, f"{path}.resnets.{i}")
        if module.upsamplers is not None:
            x = self.visit(module.upsamplers[0], x, f"{path}.upsamplers.0")
        return x

    def residual_up_block(self, module: nn.Module, x: Value, path: str) -> Value:
        """Wan 2.2's: what goes past it is repeated, and added where the main path has written."""
        y = x
        for i, block in enumerate(module.resnets):
            y = self.visit(block, y, f"{path}.resnets.{i}")
        if module.upsampler is not None:
            y = self.visit(module.upsampler, y, f"{path}.upsampler")
        shortcut, first, path = module.avg_shortcut, bool(self.first_chunk), f"{path}.avg_shortcut"
        if shortcut is None:
            return y
        if not self.is_shortcut(shortcut, "DupUp3D"):
            small = self.steps.call(path, lambda x, _: (shortcut(x, first_chunk=first), []), x, shape=y.shape)
            return self.added(y, small, path)

        def add(y: Tensor, x: Tensor, _: list[Any]) -> tuple[None, list[Any]]:
            if not add_repeated(y, shortcut, x, first):
                y.add_(shortcut(x, first_chunk=first))
            return None, []

        return self.steps.call(path, add, y, x, keeps=False, over=True)

    def residual_down_block(self, module: nn.Module, x: Value, path: str) -> Value:
        """Wan 2.2's: what goes past it is averaged, and added where the main path has written."""
        shortcut, y = module.avg_shortcut, x
        plain = self.is_shortcut(shortcut, "AvgDown3D")
        if plain:
            small = self.steps.call(
                f"{path}.avg_shortcut",
                lambda x, _: (averaged(shortcut, x)[0], []),
                x,
                keeps=False,
                loose=True,
            )
        for i, block in enumerate(module.resnets):
            y = self.visit(block, y, f"{path}.resnets.{i}")
        if module.downsampler is not None:
            y = self.visit(module.downsampler, y, f"{path}.downsampler")
        path = f"{path}.avg_shortcut"
        if not plain:
            small = self.steps.call(path, lambda x, _: (shortcut(x), []), x, shape=y.shape)
            return self.added(y, small, path)

        def add(y: Tensor, small: Tensor, x: Tensor, _: list[Any]) -> tuple[None, list[Any]]:
            add_averaged(y, shortcut, small)
            return None, []

        # Where nothing is averaged the shortcut is a view of the input, which is read as well.
        return self.steps.call(path, add, y, small, x, keeps=False, over=True)

    def is_shortcut(self, module: nn.Module, kind: str) -> bool:
        """Whether what goes past a block of Wan 2.2 need not be called."""
        return self.trusts or (_kind(module) == kind and is_bypassable(module))

    def added(self, y: Value, other: Value, path: str) -> Value:
        return self.steps.call(path, lambda y, other, _: (y + other, []), y, other, keeps=False)

    def resample(self, module: nn.Module, x: Value, path: str) -> Value:
        """A change of resolution: a convolution over space, and one over time that has a place."""
        if x.dtype == torch.float64:
            raise Unreadable("the model repeats pixels in float32")
        mode, conv = module.mode, module.resample[1]
        if mode == "upsample3d":
            x = self.doubled(module.time_conv, x, f"{path}.time_conv")
        operands = (x, *weights(conv, "weight", "bias", views={"weight": of_one_frame}))
        if mode.startswith("up"):
            options = ((1, 2, 2), True, "replicate", "zeros")
            return self.steps.op(path, op_named("upsample_conv"), (*operands, None), options)
        in_time = mode == "downsample3d"
        where = f"{path}.resample" if in_time else path
        y = self.steps.op(where, op_named("downsample_conv"), operands, (False,))
        return self.halved(module.time_conv, y, f"{path}.time_conv") if in_time else y

    def doubled(self, module: nn.Module, x: Value, path: str) -> Value:
        """Two frames of each, but of the first one of the video: two convolutions, their frames in turns."""
        state = self.steps.state(path, x, 2, "zeros")
        if self.steps.first:
            # As if zeros had gone before: the second chunk finds nothing in front of it.
            self.steps.keep(path, x, state, zeros=True)
            return x
        self.require(module, path, "zeros")
        batch, channels, frames, *size = x.shape
        result = self.steps.new((batch, channels, 2 * frames, *size), x.dtype)
        conv = conv_of(module)
        for turn in range(2):
            half = {name: outputs_of(turn, 2) for name in ("weight", "bias")}
            operands = (x, *weights(module, "weight", "bias", views=half), state, None)
            options = (conv.stride, _ONES, conv.temporal_mode, conv.spatial_mode)
            self.steps.op(
                path,
                op_named("causal_conv3d"),
                operands,
                options,
                state if turn else None,
                result=result,
                part=(turn, frames, 2),
            )
        return result

    def halved(self, module: nn.Module, x: Value, path: str) -> Value:
        """One frame of two and the one before, but of the first one of the video."""
        state = self.steps.state(path, x, 1, "zeros")
        if self.steps.first:
            self.steps.keep(path, x, state)
            return x
        self.require(module, path, "valid")
        frames = x.shape[2]
        if module.weight.shape[2] != 3 or frames < 2:
            raise Unreadable(f"{path} is given {frames} frames, with a kernel of {module.weight.shape[2]}")
        conv = conv_of(module)
        operands = (View(x, -1, frames + 1), *weights(module, "weight", "bias"), None, None)
        options = (conv.stride, _ONES, "valid", conv.spatial_mode)
        more: dict[str, Any] = {"past": state, "temporal_mode": "zeros"}
        return self.steps.op(path, op_named("causal_conv3d"), operands, options, state, **more)

    def require(self, module: nn.Module, path: str, temporal_mode: str) -> None:
        """Refuse a convolution over time that must be called, or pads time in another way."""
        at_work = self.trusts or self.is_at_work(module, "CausalConv3d")
        if not at_work or conv_of(module).temporal_mode != temporal_mode:
            raise Unreadable(f"{path} must be called")


def _kind(module: nn.Module) -> str:
    """Return the name of a class without the model's prefix."""
    name = type_name(module)
    return next((name.removeprefix(p) for p in _PREFIXES if name.startswith(p)), name)


def _views(module: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    return {"weight": of_one_frame} if is_2d(module) else {}


def _flat(parameter: Tensor) -> Tensor:
    return parameter.flatten()


_PREFIXES = ("Wan", "QwenImage21", "QwenImage")
_READS: dict[str, Callable[[_Reader, nn.Module, Value, str], Value]] = {
    "ResidualBlock": _Reader.residual_block,
    "MidBlock": _Reader.mid_block,
    "UpBlock": _Reader.up_block,
    "ResidualUpBlock": _Reader.residual_up_block,
    "ResidualDownBlock": _Reader.residual_down_block,
    "Resample": _Reader.resample,
}
_RULES = ("Resample",)
_ONES = (1, 1, 1)
