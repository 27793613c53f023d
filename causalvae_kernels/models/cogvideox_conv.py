"""CogVideoX's causal convolution, which is a call of `causal_conv3d`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.layout import is_channels_last_3d, memory_format_of
from ..core.precision import resolve_precision
from ..core.selection import requested_backend
from ..ops import causal_conv3d, causal_conv3d_
from ..ops.causal_conv3d import reads_two_sources
from ..temporal import BufferPool, FrameBuffer
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
    return convolve(module, link, inputs, conv_cache)


# Elements of an input whose copies cost less than the Python around an op, on two Zen 4 cores: encoding
# 8x32x32 in bfloat16 with everything replaced runs at 0.81 of the original's speed, with this limit at 0.96;
# 9x64x64 at 1.15 and 1.21.
SMALL = 2**18


def is_small(link: Link, x: Tensor, elements: int | None = None) -> bool:
    """Whether the original is quicker: a small input, and a convolution that would be the same.

    In float32 the tier `high` is quicker at any size, because `aten` chooses oneDNN where F.conv3d does not.

    Args:
        link: Of the swap.
        x: The input.
        elements: Of the largest activation, for more than one module; default: of `x`.
    """
    elements = x.numel() if elements is None else elements
    if elements >= SMALL or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if x.dtype == torch.float32 and resolve_precision(link.precision) != "exact":
        return False
    return requested_backend(link.backend)[0] == "auto"


def cache_fits(module: nn.Module, x: Tensor, conv_cache: Tensor | None) -> bool:
    """Whether this is a call for the op: diffusers also takes caches of other lengths and empty batches."""
    if conv_cache is None or module.time_kernel_size == 1:
        return x.numel() > 0
    batch, _, _, height, width = x.shape
    frames = (batch, module.conv.in_channels, module.time_kernel_size - 1, height, width)
    return x.numel() > 0 and conv_cache.shape == frames and conv_cache.dtype == x.dtype


def convolve(
    module: nn.Module,
    link: Link,
    x: Tensor | FrameBuffer,
    conv_cache: Tensor | None,
    residual: Tensor | None = None,
    pool: BufferPool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Convolve, add the residual; return the output and the new cache.

    With a pool, the output lies in storage of that pool where the backend can write into it.
    """
    conv, streams = module.conv, module.pad_mode != "replicate" and module.time_kernel_size > 1
    options = {
        **_options(module, link),
        "initial_state": conv_cache if streams else None,
        "residual": residual,
        "return_final_state": streams,
    }
    may = pool is not None and not isinstance(x, FrameBuffer) and conv.stride == (1, 1, 1)
    if may and may_write(x, conv_cache, residual, conv.weight, conv.bias):
        out = pool.take(
            (x.shape[0], conv.out_channels, *x.shape[2:]),
            head_room=0,
            dtype=x.dtype,
            device=x.device,
            memory_format=memory_format_of(x, conv.weight),
        ).storage
        return out, causal_conv3d_(out, x, conv.weight, conv.bias, **options)
    result = causal_conv3d(x, conv.weight, conv.bias, **options)
    return result if streams else (result, None)


def needs_no_room(module: nn.Module, link: Link, x: Tensor) -> bool:
    """Whether the convolution of something like `x` reads its past where it lies, not in front of `x`."""
    return reads_two_sources(x, module.conv.weight, module.conv.bias, **_options(module, link))


def _options(module: nn.Module, link: Link) -> dict[str, object]:
    return {
        "stride": module.conv.stride,
        "temporal_mode": "replicate",
        "spatial_mode": "replicate" if module.pad_mode == "replicate" else "zeros",
        "backend": link.backend,
        "precision": link.precision,
    }


def may_write(*tensors: Tensor | None) -> bool:
    """Whether results may be written in place: no gradient would be lost and no compiler is tracing."""
    return not torch.compiler.is_compiling() and not (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    )


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `CogVideoXCausalConv3d`, or None."""
    conv = module.conv
    if conv.dilation != (1, 1, 1):
        return f"dilation is {conv.dilation}; the module pads time as if it were 1"
    if any(k % 2 == 0 for k in conv.kernel_size[1:]) or not all(s in (1, 2) for s in conv.stride):
        return f"kernel size {conv.kernel_size} with stride {conv.stride} is not one that causal_conv3d takes"
    if conv.groups != 1 or conv.padding_mode != "zeros":
        return f"groups={conv.groups}, padding_mode={conv.padding_mode!r} is not what causal_conv3d does"
    expected = (0, 0, 0) if module.pad_mode == "replicate" else module.const_padding_conv3d
    if conv.padding != expected:
        return f"padding is {conv.padding}, the module was built with {expected}"
    return why_weight_left(conv)


def why_weight_left(conv: nn.Module) -> str | None:
    """Weights of other types (quantised, distributed) bring their own rules for calling a convolution."""
    plain = (Tensor, nn.Parameter)
    if type(conv.weight) in plain and (conv.bias is None or type(conv.bias) in plain):
        return None
    return f"its weight is a {type(conv.weight).__name__}"
