"""Group norms over every frame by itself, and where they let activations stay channels last."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import ops
from ..core import memory
from ..core.layout import memory_format_of
from ..temporal import FrameBuffer
from .conv import may_write
from .norms import NormOp, group_norm_options
from .swap import Link


def frame_norm(norm: nn.GroupNorm, link: Link) -> NormOp:
    """Return an `nn.GroupNorm` that is applied to every frame as an op."""
    arguments = (norm.num_groups, norm.weight, norm.bias)
    return NormOp(group_norm_frames, arguments, group_norm_options(norm, link))


def group_norm_frames(
    x: Tensor, *arguments: Any, out: Tensor | FrameBuffer | None = None, **options: Any
) -> Tensor | FrameBuffer:
    """Return `ops.group_norm` of every frame of `x`; frames are the batch of a view.

    Args:
        x: Shape (B, C, T, H, W).
        *arguments: Those of `ops.group_norm`.
        out: As `ops.group_norm` takes it.
        **options: Further keywords.
    """
    if out is None and may_write(x, *(a for a in arguments if isinstance(a, Tensor))):
        out = memory.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
    if out is None:
        frames = x.transpose(1, 2)
        y = ops.group_norm(frames.flatten(0, 1).unsqueeze(2), *arguments, **options)
        return y.squeeze(2).unflatten(0, frames.shape[:2]).transpose(1, 2)
    body = out.body if isinstance(out, FrameBuffer) else out
    for target, sample in zip(body.unbind(0), x.unbind(0), strict=True):
        frames, written = (t.transpose(0, 1).unsqueeze(2) for t in (sample, target))
        ops.group_norm(frames, *arguments, out=written, **options)
    return out
