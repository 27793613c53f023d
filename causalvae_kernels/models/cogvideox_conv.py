"""CogVideoX's causal convolution, which is a call of `causal_conv3d`."""

from __future__ import annotations

from torch import Tensor, nn

from ..core.layout import is_channels_last_3d, memory_format_of
from ..core.precision import resolve_precision
from .conv import Conv, convolve, is_small, why_conv3d_left
from .swap import Link


def causal_conv(
    module: nn.Module, link: Link, inputs: Tensor, conv_cache: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """`CogVideoXCausalConv3d`: the cache is the op's state; a kernel of one frame has none."""
    if is_small(link, inputs) or not cache_fits(module, inputs, conv_cache):
        return type(module).forward(module, inputs, conv_cache)
    if resolve_precision(link.precision) != "exact" and is_channels_last_3d(inputs):
        # The model's layout is that of its weights, whatever the layout of the clip: torch's GroupNorm on a
        # CPU loses digits in channels last, 5e-3 relative against 1e-6 for randn * 0.1 + 3 in float32.
        inputs = inputs.contiguous(memory_format=memory_format_of(module.conv.weight))
    conv = conv_of(module)
    return convolve(conv, link, inputs, state_of(conv, conv_cache))


def conv_of(module: nn.Module) -> Conv:
    """Return what a `CogVideoXCausalConv3d` computes."""
    replicate = module.pad_mode == "replicate"
    return Conv(
        module.conv.weight,
        module.conv.bias,
        stride=module.conv.stride,
        spatial_mode="replicate" if replicate else "zeros",
        streams=not replicate and module.time_kernel_size > 1,
    )


def state_of(conv: Conv, conv_cache: Tensor | None) -> Tensor | None:
    """Return what a convolution takes of its cache: one that does not stream ignores it."""
    return conv_cache if conv.streams else None


def cache_fits(module: nn.Module, x: Tensor, conv_cache: Tensor | None) -> bool:
    """Whether this is a call for the op: diffusers also takes caches of other lengths and empty batches."""
    if conv_cache is None or module.time_kernel_size == 1:
        return x.numel() > 0
    batch, _, _, height, width = x.shape
    frames = (batch, module.conv.in_channels, module.time_kernel_size - 1, height, width)
    return x.numel() > 0 and conv_cache.shape == frames and conv_cache.dtype == x.dtype


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `CogVideoXCausalConv3d`, or None."""
    padding = (0, 0, 0) if module.pad_mode == "replicate" else module.const_padding_conv3d
    return why_conv3d_left(module.conv, padding)
