"""LTX's encoder and decoder: activations stay channels last from the first convolution to the last."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .conv import convolve, is_small
from .ltx_blocks import conv_of, norm_silu, why_conv_left, why_norm_left
from .shuffles import channels_to_pixels, fits_blocks, pixels_to_channels
from .swap import Link

_INNER = torch.channels_last_3d


def encoder(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`LTXVideoEncoder3d`."""
    if _leaves(module, link, hidden_states, hidden_states[:, 0].numel(), _patch(module)):
        return type(module).forward(module, hidden_states)
    return _encode(module, link, hidden_states, (), module.conv_out.is_causal)


def encoder2(module: nn.Module, link: Link, hidden_states: Tensor, causal: bool | None = None) -> Tensor:
    """`LTX2VideoEncoder3d`."""
    if _leaves(module, link, hidden_states, hidden_states[:, 0].numel(), _patch(module)):
        return type(module).forward(module, hidden_states, causal)
    causal = causal or module.is_causal
    return _encode(module, link, hidden_states, (None, None, causal), causal)


def decoder(module: nn.Module, link: Link, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
    """`LTXVideoDecoder3d`."""
    if _leaves(module, link, hidden_states, hidden_states[:, 0].numel() * _growth(module)):
        return type(module).forward(module, hidden_states, temb)
    return _decode(module, link, hidden_states, temb, (), module.conv_out.is_causal)


def decoder2(
    module: nn.Module,
    link: Link,
    hidden_states: Tensor,
    temb: Tensor | None = None,
    causal: bool | None = None,
) -> Tensor:
    """`LTX2VideoDecoder3d`."""
    if _leaves(module, link, hidden_states, hidden_states[:, 0].numel() * _growth(module)):
        return type(module).forward(module, hidden_states, temb, causal)
    causal = causal or module.is_causal
    return _decode(module, link, hidden_states, temb, (None, causal), causal)


def why_coder_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this encoder or decoder, or None."""
    return why_norm_left(module.norm_out) or why_conv_left(module.conv_out)


def _patch(module: nn.Module) -> tuple[int, int, int]:
    return module.patch_size_t, module.patch_size, module.patch_size


def _growth(module: nn.Module) -> int:
    """Return how many pixels one of a latent becomes before the patches."""
    samplers = [s for block in module.up_blocks for s in block.upsamplers or ()]
    return math.prod([math.prod(sampler.stride) for sampler in samplers])  # a compiler takes no generator


def _leaves(
    module: nn.Module, link: Link, x: Tensor, pixels: int, blocks: tuple[int, int, int] = (1, 1, 1)
) -> bool:
    """Whether the original runs: few pixels or none, or such as are no whole patches."""
    conv = module.conv_in.conv
    return x.numel() == 0 or not fits_blocks(x.shape, blocks) or is_small(link, x, conv.out_channels * pixels)


def _encode(module: nn.Module, link: Link, x: Tensor, arguments: tuple[Any, ...], causal: bool) -> Tensor:
    x = pixels_to_channels(x, _patch(module), memory_format=_INNER, width_first=True)
    x = module.conv_in(x, *arguments[-1:])
    for block in (*module.down_blocks, module.mid_block):
        x = _run(module, block, x, *arguments)
    conv = conv_of(module.conv_out, causal, x)
    x, _ = convolve(conv, link, norm_silu(module.norm_out, link, conv, x))
    # One variance for all channels.
    return torch.cat([x, x[:, -1:].expand(-1, x.shape[1] - 2, -1, -1, -1)], dim=1).contiguous()


def _decode(
    module: nn.Module,
    link: Link,
    x: Tensor,
    temb: Tensor | None,
    arguments: tuple[Any, ...],
    causal: bool,
) -> Tensor:
    x = module.conv_in(x.contiguous(memory_format=_INNER), *arguments[-1:])
    if module.timestep_scale_multiplier is not None:
        temb = temb * module.timestep_scale_multiplier
    for block in (module.mid_block, *module.up_blocks):
        x = _run(module, block, x, temb, *arguments)
    scale = shift = None
    if module.time_embedder is not None:
        temb = module.time_embedder(
            timestep=temb.flatten(),
            resolution=None,
            aspect_ratio=None,
            batch_size=x.size(0),
            hidden_dtype=x.dtype,
        )
        table = temb.view(x.size(0), -1, 1, 1, 1).unflatten(1, (2, -1))
        shift, scale = (table + module.scale_shift_table[None, ..., None, None, None]).unbind(dim=1)
    conv = conv_of(module.conv_out, causal, x)
    x, _ = convolve(conv, link, norm_silu(module.norm_out, link, conv, x, scale, shift))
    return channels_to_pixels(x, _patch(module), memory_format=torch.contiguous_format, width_first=True)


def _run(module: nn.Module, block: nn.Module, *arguments: Any) -> Tensor:
    if torch.is_grad_enabled() and module.gradient_checkpointing:
        return module._gradient_checkpointing_func(block, *arguments)
    return block(*arguments)
