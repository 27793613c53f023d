"""Residual blocks of the Hunyuan VAEs: a norm writes where the next convolution reads, SiLU applied."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..temporal import BufferPool, FrameBuffer
from .conv import Conv, convolve
from .hunyuan_conv import conv_of, shortcut_of, why_conv_left
from .norms import NormOp
from .producers import Held, activated, give, silu
from .swap import Link

NormOf = Callable[[nn.Module, Link, Tensor], NormOp | None]
"""Returns a norm module as an op for an input; None if the module must be called."""


def residual_block(
    module: nn.Module, link: Link, held: Held, norm_of: NormOf, pool: BufferPool | None = None
) -> Tensor:
    """Run a residual block; at no time are more than three activations there.

    They are the input, which is the residual, what a convolution reads, and what it writes. Where the number
    of channels changes, the shortcut's output is the residual, and an owned input is normalised in place.

    Args:
        module: The block.
        link: Of its swap.
        held: The input.
        norm_of: The family's.
        pool: Where storage comes from and goes to, or None.
    """
    owned, x = held.owned, held.take()
    residual, frees = x, owned
    if module.conv_shortcut is not None:
        residual, frees = _shortcut(module.conv_shortcut, link, x, pool), True
    conv1, conv2 = conv_of(module.conv1), conv_of(module.conv2)
    y = normed(module.norm1, norm_of, link, conv1, x, overwrite=owned and residual is not x, pool=pool)
    del x
    hidden, _ = convolve(conv1, link, y, pool=pool)
    give(pool, y)
    del y
    dropout = module._modules.get("dropout")
    if dropout is not None and dropout.training and dropout.p > 0:
        y = dropout(normed(module.norm2, norm_of, link, None, hidden))
    else:
        y = normed(module.norm2, norm_of, link, conv2, hidden, overwrite=True, pool=pool)
    del hidden
    hidden, _ = convolve(conv2, link, y, residual=residual, pool=pool)
    give(pool, y)
    if frees:
        give(pool, residual)
    return hidden


def normed(
    norm: nn.Module,
    norm_of: NormOf,
    link: Link,
    conv: Conv | None,
    x: Tensor,
    *,
    overwrite: bool = False,
    pool: BufferPool | None = None,
) -> Tensor | FrameBuffer:
    """Return SiLU of a norm of `x`, where possible in the memory that `conv` reads.

    Args:
        norm: The norm.
        norm_of: The family's.
        link: Of the swap.
        conv: What reads the result; None: anything.
        x: The activation.
        overwrite: Whether `x` may be overwritten.
        pool: Where the memory comes from, or None.
    """
    op = norm_of(norm, link, x)
    if op is None:  # in the layout of the original, whose norms see no other
        return silu(link, conv, norm(x.contiguous()), pool)
    return activated(op, link, conv, x, overwrite=overwrite, pool=pool)


def why_resnet_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this block, or None."""
    for name in ("conv1", "conv2"):
        conv = getattr(module, name)
        reason = why_conv_left(conv)
        if reason is None and tuple(conv.conv.stride) != (1, 1, 1):
            reason = f"its stride is {conv.conv.stride}, the rule is for a block that keeps the resolution"
        if reason is not None:
            return f"{name}: {reason}"
    return None


def _shortcut(module: nn.Module, link: Link, x: Tensor, pool: BufferPool | None) -> Tensor:
    conv = shortcut_of(module, link)
    return module(x) if conv is None else convolve(conv, link, x, pool=pool)[0]
