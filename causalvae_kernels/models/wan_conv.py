"""Wan's causal convolution, which is a call of `causal_conv3d`, and the feature cache of its model.

The cache is a list with a place for every convolution, in the order in which they are visited. A place is
None before the first chunk, then holds the last frames that the convolution has seen, two at most; in front
of a single one stand zeros. It is filled in place, so that modules with and without a rule can be mixed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .conv import Conv, convolve, is_small, why_conv3d_left
from .swap import Link

FeatCache = list[Any] | None
FeatIdx = list[int] | None


def causal_conv(module: nn.Module, link: Link, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """`WanCausalConv3d`: the cached frames are the op's state."""
    conv = conv_of(module)
    if is_small(link, x) or not fits(module, conv, x, cache_x):
        return type(module).forward(module, x, cache_x)
    return convolve(conv, link, x, state_of(conv, x, cache_x))[0]


def conv_of(module: nn.Module) -> Conv:
    """Return what a `WanCausalConv3d`, or its form for single images, computes."""
    weight, stride = module.weight, module.stride
    if is_2d(module):
        weight, stride = weight.unsqueeze(2), (1, *stride)
    pads_time = _frames_in_front(module) > 0 or weight.shape[2] == 1
    return Conv(weight, module.bias, tuple(stride), temporal_mode="zeros" if pads_time else "valid")


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `WanCausalConv3d`, or None."""
    *times, height, width = module.kernel_size
    expected = (*_both_sides(width), *_both_sides(height))
    if tuple(module._padding[:4]) != expected:
        return f"it pads {module._padding[:4]} pixels, the rule is for {expected}"
    if times and module._padding[4] not in (0, times[0] - 1):
        return f"it pads {module._padding[4]} frames, the rule is for 0 or {times[0] - 1}"
    return why_conv3d_left(module, (0,) * len(module.kernel_size))


def fits(module: nn.Module, conv: Conv, x: Tensor, cached: Tensor | None) -> bool:
    """Whether this is a call for the op: diffusers also takes caches of other lengths and empty batches."""
    if x.dim() != 5 or x.numel() == 0:
        return False
    batch, channels, frames, height, width = x.shape
    if is_2d(module) and (frames > 1 or cached is not None):
        return False
    if conv.temporal_mode == "valid":
        return frames >= conv.weight.shape[2]
    if cached is None or conv.head_room == 0:
        return True
    shapes = [(batch, channels, n, height, width) for n in range(1, conv.head_room + 1)]
    return isinstance(cached, Tensor) and cached.shape in shapes and cached.dtype == x.dtype


def state_of(conv: Conv, x: Tensor, cached: Tensor | None) -> Tensor | None:
    """Return the state that cached frames stand for."""
    if cached is None or conv.head_room == 0:
        return None
    return _behind_zeros(cached.to(x.device), conv.head_room)


def _behind_zeros(frames: Tensor, count: int) -> Tensor:
    missing = count - frames.shape[2]
    return torch.cat([torch.zeros_like(frames[:, :, :1])] * missing + [frames], dim=2) if missing else frames


def is_2d(module: nn.Module) -> bool:
    """Whether it convolves single images: Qwen-Image 2.1's is an `nn.Conv2d`."""
    return module.weight.dim() == 4


def _frames_in_front(module: nn.Module) -> int:
    return 0 if is_2d(module) else module._padding[4]


def _both_sides(size: int) -> tuple[int, int]:
    return (size - 1) // 2, (size - 1) // 2


def last_frames(x: Tensor, past: Tensor | None) -> Tensor:
    """Return the last two frames of a stream, or the only one.

    Args:
        x: The chunk, shape (B, C, T, H, W).
        past: The last frames before it, or None.

    Returns:
        Shape (B, C, 1 or 2, H, W); in nobody else's hands.
    """
    count = x.shape[2]
    if count == 1 and past is not None:
        return torch.cat([past[:, :, -1:].to(x.device), x], dim=2)
    return x[:, :, -2:].clone()
