"""The causal convolution of the Hunyuan VAEs: one class under three names.

Time in front and space around are padded with the nearest frame and pixel. Nothing streams: long videos are
cut into overlapping windows, each with a first frame of its own.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..core.layout import is_channels_last_3d, memory_format_of
from ..core.precision import resolve_precision
from .conv import Conv, convolve, is_small, why_conv3d_left
from .swap import Link


def causal_conv(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`HunyuanVideoCausalConv3d` and its successors: repeated frames and pixels are read, not written."""
    if is_small(link, hidden_states):
        return type(module).forward(module, hidden_states)
    if resolve_precision(link.precision) != "exact":
        hidden_states = in_format_of(module, hidden_states)
    return convolve(conv_of(module), link, hidden_states)[0]


def conv_of(module: nn.Module) -> Conv:
    """Return what the causal convolution computes."""
    conv = module.conv
    return Conv(conv.weight, conv.bias, tuple(conv.stride), spatial_mode="replicate")


def in_format_of(module: nn.Module, x: Tensor) -> Tensor:
    """Return `x` in the layout of a causal convolution's weights, which is the model's outside of our coders.

    In channels last a framework norm behind it would lose digits on a CPU, see `careful_group_norm`.
    """
    if is_channels_last_3d(x):
        return x.contiguous(memory_format=memory_format_of(module.conv.weight))
    return x


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this causal convolution, or None."""
    time, height, width = module.conv.kernel_size
    expected = (width // 2, width // 2, height // 2, height // 2, time - 1, 0)
    if module.pad_mode != "replicate":
        return f"pad_mode is {module.pad_mode!r}, the rule is for 'replicate'"
    if tuple(module.time_causal_padding) != expected:
        return f"it pads by {tuple(module.time_causal_padding)}, the rule is for {expected} (as F.pad has it)"
    return why_conv3d_left(module.conv, (0, 0, 0))
