"""Wan's norm, residual block and blocks of those, and how one step hands its activation to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..core.layout import memory_format_of
from ..temporal import BufferPool, FrameBuffer
from .coders import is_bypassable
from .conv import convolve, is_small
from .hooks import is_plain, type_name
from .norms import NormOp, rms_norm, takes
from .producers import Held, activated, silu
from .swap import Link, rule_at_work, run
from .wan_conv import Features, conv_of, fits, why_conv_left

FeatCache = list[Any] | None
FeatIdx = list[int] | None


@dataclass(frozen=True)
class Way:
    """What the steps of one run through a model, or of a module alone, share.

    Attributes:
        link: Of the swap.
        features: The feature cache.
        pool: Where storage comes from and goes to, or None.
    """

    link: Link
    features: Features
    pool: BufferPool | None = None


Step = Callable[..., None]
"""`step(module, way, held, **options)`: replace the activation by what the module makes of it."""

STEPS: dict[Callable[..., Any], Step] = {}
"""By the `forward` of a rule: the step that it is."""


def visit(module: nn.Module, way: Way, held: Held, **options: Any) -> None:
    """Run a module on the activation: as a step, or by calling it where the step would bypass somebody."""
    rule = rule_at_work(module, way.link) if is_bypassable(module) else None
    step = None if rule is None else STEPS.get(rule.forward)
    if step is not None:
        step(module, way, held, **options)
        return
    features, x, known = way.features, held.take(), type_name(module) in _ATTENTION
    if features.kept and not known:
        options |= {"feat_cache": features.cache, "feat_idx": features.index}
    layout = memory_format_of(x)
    y = module(x, **options)
    held.tensor = y.contiguous(memory_format=layout)
    # Otherwise somebody may keep what comes out; what goes in is given to nobody else.
    held.owned = held.tensor is not y or (known and is_bypassable(module))


_ATTENTION = tuple(f"{prefix}AttentionBlock" for prefix in ("Wan", "QwenImage", "QwenImage21"))


def alone(
    step: Step, module: nn.Module, link: Link, x: Tensor, cache: FeatCache, index: FeatIdx, **options: Any
) -> Tensor:
    """Run a step for a caller who may keep what he passes."""
    features = Features(cache, index)
    if is_small(link, x):
        return type(module).forward(module, x, cache, features.index, **options)
    held = Held(x)
    step(module, Way(link, features), held, **options)
    return held.take()


def norm(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`WanRMS_norm` of frames, or of images."""
    if x.dim() not in (4, 5) or is_small(link, x) or not _takes(module, x):
        return type(module).forward(module, x)
    op = norm_of(module, link)
    y = op(x.unsqueeze(2) if x.dim() == 4 else x, activation=None)
    return y.squeeze(2) if x.dim() == 4 else y


def why_norm_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `WanRMS_norm`, or None."""
    if not module.channel_first:
        return "its channels come last"
    if module.scale != module.gamma.numel() ** 0.5:
        return f"its scale is {module.scale}, the rule is for {module.gamma.numel()} ** 0.5"
    if not isinstance(module.bias, Tensor) and module.bias != 0:
        return f"its bias is {module.bias}, the rule is for a tensor or none"
    return None


def norm_of(module: nn.Module, link: Link) -> NormOp:
    """Return a `WanRMS_norm` as `ops.rms_norm`."""
    return rms_norm(module.gamma, _bias(module), link)


def _bias(module: nn.Module) -> Tensor | None:
    return module.bias if isinstance(module.bias, Tensor) else None


def _takes(module: nn.Module, x: Tensor) -> bool:
    bias = _bias(module)
    return takes((module.gamma, bias), x) and (bias is None or bias.dtype == module.gamma.dtype)


def normed(
    module: nn.Module, way: Way, conv: nn.Module | None, x: Tensor, *, overwrite: bool = False
) -> Tensor | FrameBuffer:
    """Return SiLU of a `WanRMS_norm` of `x`, where possible in the memory that `conv` reads.

    Args:
        module: The norm.
        way: Of the run.
        conv: A `WanCausalConv3d` that reads the result; None: anything.
        x: The activation.
        overwrite: Whether `x` may be overwritten.
    """
    memory, first = None if conv is None else conv_of(conv), way.features.found is None
    if not _takes(module, x):
        return silu(way.link, memory, module(x), way.pool, first)
    op = norm_of(module, way.link)
    return activated(op, way.link, memory, x, overwrite=overwrite, pool=way.pool, first=first)


def resnet(
    module: nn.Module, link: Link, x: Tensor, feat_cache: FeatCache = None, feat_idx: FeatIdx = None
) -> Tensor:
    """`WanResidualBlock`: norm and SiLU write what the convolution reads, which adds the shortcut."""
    return alone(residual_block, module, link, x, feat_cache, feat_idx)


def why_resnet_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this block, or None."""
    return (
        why_norm_left(module.norm1)
        or why_norm_left(module.norm2)
        or why_conv_left(module.conv1)
        or why_conv_left(module.conv2)
    )


def residual_block(module: nn.Module, way: Way, held: Held) -> None:
    """Run a residual block; at no time are more than three activations there, but for what is cached.

    They are the input, which is the residual, what a convolution reads, and what it writes; the second one
    writes over an owned residual. Where the number
    of channels changes, the shortcut's output is the residual, and an owned input is normalised in place.
    """
    link, pool, features = way.link, way.pool, way.features
    owned, x = held.owned, held.take()
    residual, frees = _shortcut(module.conv_shortcut, way, x, owned)
    y = normed(module.norm1, way, module.conv1, x, overwrite=owned and residual is not x)
    del x
    hidden = features.convolve(module.conv1, link, y, pool=pool, owned=True)
    if module.dropout.training and module.dropout.p > 0:
        y = module.dropout(normed(module.norm2, way, None, hidden))
    else:
        y = normed(module.norm2, way, module.conv2, hidden, overwrite=True)
    del hidden
    held.tensor = features.convolve(module.conv2, link, y, residual, pool, owned=True, over=frees)
    held.owned = True


def _shortcut(module: nn.Module, way: Way, x: Tensor, owned: bool) -> tuple[Tensor, bool]:
    """Return the residual, and whether it is in nobody else's hands."""
    if type_name(module) == "Identity" and is_plain(module, run):
        return x, owned
    if rule_at_work(module, way.link) is None:
        return module(x), False
    conv = conv_of(module)
    if not fits(module, conv, x, None):
        return type(module).forward(module, x), True
    return convolve(conv, way.link, x, pool=way.pool)[0], True


def mid_block(
    module: nn.Module, link: Link, x: Tensor, feat_cache: FeatCache = None, feat_idx: FeatIdx = None
) -> Tensor:
    """`WanMidBlock`: each block overwrites what the one before has made."""
    return alone(between, module, link, x, feat_cache, feat_idx)


def between(module: nn.Module, way: Way, held: Held) -> None:
    """Run the middle block."""
    visit(module.resnets[0], way, held)
    for attention, block in zip(module.attentions, module.resnets[1:], strict=False):
        if attention is not None:
            visit(attention, way, held)
        visit(block, way, held)


def up_block(
    module: nn.Module,
    link: Link,
    x: Tensor,
    feat_cache: FeatCache = None,
    feat_idx: FeatIdx = None,
    first_chunk: bool | None = None,
) -> Tensor:
    """`WanUpBlock`: each block overwrites what the one before has made."""
    options = {} if first_chunk is None else {"first_chunk": first_chunk}
    return alone(upwards, module, link, x, feat_cache, feat_idx, **options)


def upwards(module: nn.Module, way: Way, held: Held, first_chunk: bool | None = None) -> None:
    """Run an upsampling block."""
    for block in module.resnets:
        visit(block, way, held)
    if module.upsamplers is not None:
        visit(module.upsamplers[0], way, held)


STEPS |= {resnet: residual_block, mid_block: between, up_block: upwards}
