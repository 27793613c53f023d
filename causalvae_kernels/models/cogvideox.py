"""The rules for diffusers' `AutoencoderKLCogVideoX`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.layout import is_channels_last_3d, memory_format_of
from ..core.precision import resolve_precision
from ..core.selection import requested_backend
from ..ops import causal_conv3d
from ..temporal import FrameBuffer
from .cogvideox_chunks import channels, chunk_sizes, decode_chunk, encode_chunk
from .frames import knows_first_chunk
from .stream import ChunkCodec
from .swap import Family, Link, Rule, register_family

Cache = dict[str, Any] | None


def causal_conv(
    module: nn.Module, link: Link, inputs: Tensor, conv_cache: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """`CogVideoXCausalConv3d`: the cache is the op's state; a kernel of one frame has none."""
    if _is_small(link, inputs) or not _cache_fits(module, inputs, conv_cache):
        return type(module).forward(module, inputs, conv_cache)
    return _convolve(module, link, inputs, conv_cache)


# Elements of an input whose copies cost less than the Python around an op, on two Zen 4 cores: encoding
# 8x32x32 in bfloat16 with everything replaced runs at 0.81 of the original's speed, with this limit at 0.96;
# 9x64x64 at 1.15 and 1.21.
SMALL = 2**18


def _is_small(link: Link, x: Tensor) -> bool:
    """Whether the original is quicker: a small input, and a convolution that would be the same.

    In float32 the tier `high` is quicker at any size, because `aten` chooses oneDNN where F.conv3d does not.
    """
    if x.numel() >= SMALL or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if x.dtype == torch.float32 and resolve_precision(link.precision) != "exact":
        return False
    return requested_backend(link.backend)[0] == "auto"


def _cache_fits(module: nn.Module, x: Tensor, conv_cache: Tensor | None) -> bool:
    """Whether this is a call for the op: diffusers also takes caches of other lengths and empty batches."""
    if conv_cache is None or module.time_kernel_size == 1:
        return x.numel() > 0
    batch, _, _, height, width = x.shape
    frames = (batch, module.conv.in_channels, module.time_kernel_size - 1, height, width)
    return x.numel() > 0 and conv_cache.shape == frames and conv_cache.dtype == x.dtype


def _convolve(
    module: nn.Module,
    link: Link,
    x: Tensor | FrameBuffer,
    conv_cache: Tensor | None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    conv = module.conv
    if isinstance(x, Tensor) and _follows_weights(link) and is_channels_last_3d(x):
        x = x.contiguous(memory_format=memory_format_of(conv.weight))
    streams = module.pad_mode != "replicate" and module.time_kernel_size > 1
    result = causal_conv3d(
        x,
        conv.weight,
        conv.bias,
        stride=conv.stride,
        temporal_mode="replicate",
        spatial_mode="replicate" if module.pad_mode == "replicate" else "zeros",
        initial_state=conv_cache if streams else None,
        residual=residual,
        return_final_state=streams,
        backend=link.backend,
        precision=link.precision,
    )
    return result if streams else (result, None)


def _follows_weights(link: Link) -> bool:
    """Whether the model's layout is that of its weights, whatever the layout of the clip.

    A channels-last clip would make every activation channels last, and torch's GroupNorm on a CPU loses
    digits there: 5e-3 relative against 1e-6 for 16 channels of randn * 0.1 + 3 in float32.
    """
    return resolve_precision(link.precision) != "exact"


def _why_conv_left(module: nn.Module) -> str | None:
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
    return _why_weight_left(conv)


def _why_weight_left(conv: nn.Module) -> str | None:
    """Weights of other types (quantised, distributed) bring their own rules for calling a convolution."""
    plain = (Tensor, nn.Parameter)
    if type(conv.weight) in plain and (conv.bias is None or type(conv.bias) in plain):
        return None
    return f"its weight is a {type(conv.weight).__name__}"


def spatial_norm(
    module: nn.Module, link: Link, f: Tensor, zq: Tensor, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, None]]:
    """`CogVideoXSpatialNorm3D` with its two 1x1x1 convolutions before the nearest-neighbour upsampling.

    A pointwise convolution commutes with repeating pixels, so scale and shift are computed once per latent
    pixel instead of once per output pixel (64 to 256 times fewer), and no cache is kept for them.
    """
    scale, shift = module.conv_y.conv(zq), module.conv_b.conv(zq)
    normed = module.norm_layer(f)
    frames = f.shape[2]
    pieces = [slice(0, 1), slice(1, None)] if frames > 1 and frames % 2 else [slice(None)]
    in_place = _may_write(normed, scale, shift) and torch.result_type(normed, scale) == normed.dtype
    parts = [
        _modulate(normed[:, :, piece], scale[:, :, piece], shift[:, :, piece], in_place) for piece in pieces
    ]
    out = normed if in_place else parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out, {"conv_y": None, "conv_b": None}


def _modulate(x: Tensor, scale: Tensor, shift: Tensor, in_place: bool) -> Tensor:
    """Return x * scale + shift, both repeated to the size of `x` by nearest neighbour."""
    time, rows, columns = (n // m for n, m in zip(x.shape[2:], scale.shape[2:], strict=True))
    view = x
    if x.shape[2:] == scale.shape[2:]:
        pass
    elif _repeats_evenly(x.shape[2:], scale.shape[2:]):
        # Repeat columns only; frames and rows are broadcast, so the factors stay in the cache.
        if columns > 1:
            scale, shift = (s.unsqueeze(5).expand(*s.shape, columns).flatten(4) for s in (scale, shift))
        scale, shift = (s.unsqueeze(4).unsqueeze(3) for s in (scale, shift))
        view = x.unflatten(3, (-1, rows)).unflatten(2, (-1, time))
    else:
        scale, shift = (F.interpolate(s, size=x.shape[2:]) for s in (scale, shift))
    if in_place:
        return torch.addcmul(shift, view, scale, out=view)
    return torch.addcmul(shift, view, scale).reshape(x.shape)


def _repeats_evenly(size: Sequence[int], small: Sequence[int]) -> bool:
    """Whether nearest neighbour means repeating 2**k times: other factors leave the index to rounding."""
    factors = [n // m for n, m in zip(size, small, strict=True)]
    return all(n == f * m and f & (f - 1) == 0 for n, m, f in zip(size, small, factors, strict=True))


def resnet(
    module: nn.Module,
    link: Link,
    inputs: Tensor,
    temb: Tensor | None = None,
    zq: Tensor | None = None,
    conv_cache: Cache = None,
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXResnetBlock3D`: the activation writes into the convolution's padded buffer."""
    cache, new_cache = conv_cache or {}, {}
    if (
        _is_small(link, inputs)
        or not _cache_fits(module.conv1, inputs, cache.get("conv1"))
        or not _cache_fits(module.conv2, inputs, cache.get("conv2"))
    ):
        return type(module).forward(module, inputs, temb, zq, conv_cache)
    hidden = _norm(module, "norm1", inputs, zq, cache, new_cache)
    activated = _activate(module.conv1, hidden, cache.get("conv1"))
    del hidden
    hidden, new_cache["conv1"] = _convolve(module.conv1, link, activated, cache.get("conv1"))
    del activated
    if temb is not None:
        hidden = hidden + module.temb_proj(F.silu(temb))[:, :, None, None, None]
    hidden = _norm(module, "norm2", hidden, zq, cache, new_cache)
    if module.dropout.training and module.dropout.p > 0:
        activated = module.dropout(F.silu(hidden))
    else:
        activated = _activate(module.conv2, hidden, cache.get("conv2"))
    del hidden
    if module.in_channels == module.out_channels:
        residual = inputs
    elif module.use_conv_shortcut:
        residual, new_cache["conv_shortcut"] = module.conv_shortcut(
            inputs, conv_cache=cache.get("conv_shortcut")
        )
    else:
        residual = module.conv_shortcut(inputs)
    hidden, new_cache["conv2"] = _convolve(module.conv2, link, activated, cache.get("conv2"), residual)
    return hidden, new_cache


def _norm(
    module: nn.Module, name: str, x: Tensor, zq: Tensor | None, cache: dict[str, Any], new: dict[str, Any]
) -> Tensor:
    norm = getattr(module, name)
    if zq is None:
        return norm(x)
    x, new[name] = norm(x, zq, conv_cache=cache.get(name))
    return x


def _activate(conv: nn.Module, x: Tensor, conv_cache: Tensor | None) -> Tensor | FrameBuffer:
    """Apply SiLU, where possible straight into the body of the buffer that `conv` reads."""
    if not _may_write(x, conv_cache) or conv.pad_mode == "replicate":
        return F.silu(x)
    buffer = FrameBuffer.empty(
        x.shape,
        head_room=conv.time_kernel_size - 1,
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x),
    )
    torch.ops.aten.silu.out(x, out=buffer.body)
    return buffer


def _may_write(*tensors: Tensor | None) -> bool:
    """Whether results may be written in place: no gradient would be lost and no compiler is tracing."""
    return not torch.compiler.is_compiling() and not (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    )


def upsample(module: nn.Module, link: Link, inputs: Tensor) -> Tensor:
    """`CogVideoXUpsample3D`: frames that time-doubling makes equal are convolved once, then repeated."""
    frames = inputs.shape[2]
    wide = F.interpolate(inputs, scale_factor=(1.0, 2.0, 2.0))
    out = _convolve_frames(module.conv, link, wide, spatial_mode="zeros")
    if not module.compress_time or frames == 1:
        return out
    source = torch.arange(2 * frames, device=inputs.device) // 2
    return out.index_select(2, source[1:] if frames % 2 else source)


def downsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`CogVideoXDownsample3D`: pairs of frames are averaged straight into the padded buffer."""
    frames = x.shape[2]
    averages = module.compress_time and frames > 1
    lone = frames % 2 if averages else frames
    halo = (0, 1, 0, 1)
    if not _may_write(x):
        if averages:
            pairs = 0.5 * x[:, :, lone::2] + 0.5 * x[:, :, lone + 1 :: 2]
            x = torch.cat([x[:, :, :lone], pairs], dim=2)
        return _convolve_frames(module.conv, link, F.pad(x, (0, 1, 0, 1)), spatial_mode="valid")
    shape = (*x.shape[:2], lone + (frames - lone) // 2, *x.shape[3:])
    buffer = FrameBuffer.empty(
        shape, head_room=0, halo=halo, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x)
    )
    buffer.body[:, :, :lone].copy_(x[:, :, :lone])
    if averages:
        pairs = buffer.body[:, :, lone:]
        # Halving first is exact and cannot overflow float16; the sum is rounded once, as in avg_pool1d.
        torch.mul(x[:, :, lone::2], 0.5, out=pairs)
        pairs.add_(x[:, :, lone + 1 :: 2], alpha=0.5)
    return _convolve_frames(module.conv, link, buffer, spatial_mode="zeros")


def up_block(
    module: nn.Module,
    link: Link,
    hidden_states: Tensor,
    temb: Tensor | None = None,
    zq: Tensor | None = None,
    conv_cache: Cache = None,
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXUpBlock3D` that is told by the absent cache, not by an odd length, which chunk is the first.

    The upsampler at its end doubles frames in time and convolves them one by one, so a frame that was doubled
    and should not have been is two equal frames, and the mend is to drop or to repeat one.
    """
    out, cache = type(module).forward(module, hidden_states, temb, zq, conv_cache)
    doubles = module.upsamplers is not None and any(u.compress_time for u in module.upsamplers)
    if doubles and knows_first_chunk():
        # Branches, not a comparison of booleans: the length is symbolic under a compiler.
        if hidden_states.shape[2] % 2 == 0:
            if conv_cache is None:
                out = out[:, :, 1:]
        elif conv_cache is not None:
            out = torch.cat([out[:, :, :1], out], dim=2)
    return out, cache


def _convolve_frames(conv: nn.Conv2d, link: Link, x: Tensor | FrameBuffer, *, spatial_mode: str) -> Tensor:
    """Convolve every frame on its own: a causal convolution with kT = 1."""
    return causal_conv3d(
        x,
        conv.weight.unsqueeze(2),
        conv.bias,
        stride=(1, *conv.stride),
        spatial_mode=spatial_mode,
        backend=link.backend,
        precision=link.precision,
    )


def _why_resample_left(module: nn.Module, stride: int, padding: int) -> str | None:
    conv = module.conv
    found = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    expected = ((3, 3), (stride, stride), (padding, padding), (1, 1), 1, "zeros")
    if found != expected:
        return f"its convolution is {conv}, the rule is for {expected}"
    return _why_weight_left(conv)


def _why_upsample_left(module: nn.Module) -> str | None:
    return _why_resample_left(module, stride=1, padding=1)


def _why_downsample_left(module: nn.Module) -> str | None:
    return _why_resample_left(module, stride=2, padding=0)


def _why_resnet_left(module: nn.Module) -> str | None:
    return _why_conv_left(module.conv1) or _why_conv_left(module.conv2)


_CONV = "CogVideoXCausalConv3d"
_SAFE = "CogVideoXSafeConv3d"

register_family(
    Family(
        model="AutoencoderKLCogVideoX",
        rules={
            _CONV: Rule(causal_conv, (("conv", _SAFE),), _why_conv_left, exact=True),
            "CogVideoXSpatialNorm3D": Rule(
                spatial_norm,
                (
                    ("norm_layer", "GroupNorm"),
                    ("conv_y", _CONV),
                    ("conv_y.conv", _SAFE),
                    ("conv_b", _CONV),
                    ("conv_b.conv", _SAFE),
                ),
            ),
            "CogVideoXResnetBlock3D": Rule(
                resnet,
                (
                    ("nonlinearity", "SiLU"),
                    ("dropout", "Dropout"),
                    ("conv1", _CONV),
                    ("conv1.conv", _SAFE),
                    ("conv2", _CONV),
                    ("conv2.conv", _SAFE),
                ),
                _why_resnet_left,
            ),
            "CogVideoXUpsample3D": Rule(upsample, (("conv", "Conv2d"),), _why_upsample_left),
            "CogVideoXDownsample3D": Rule(downsample, (("conv", "Conv2d"),), _why_downsample_left),
        },
        adapted={"CogVideoXUpBlock3D": Rule(up_block, exact=True, rests=False)},
        chunks=ChunkCodec(encode_chunk, decode_chunk, chunk_sizes, channels),
        needs_no_rule={
            "GroupNorm": "a norm without a condition; the framework's is used",
            _SAFE: "a pointwise convolution: nothing to pad",
            "Linear": "a projection of the time embedding",
        },
    )
)
