"""Attention in which a frame sees itself and all frames before it, without a mask.

diffusers writes that as a mask of (T·h·w)² elements: 34 GB in float32 for 65 frames of 480×720. Frame by
frame the queries of frame t meet the keys of frames 0…t, which gives the same sums without the mask, and half
the products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..coder import record as recording
from .swap import Link


def attend(query: Tensor, key: Tensor, value: Tensor, frames: int) -> Tensor:
    """Return causal attention over frames.

    Args:
        query: Shape (B, heads, T·h·w, d), frame after frame.
        key: As `query`.
        value: As `query`.
        frames: T.

    Returns:
        Shape (B, heads, T·h·w, d).
    """
    recorder = recording.current()
    if recorder is not None and recorder.node_of(query) is not None:
        return recorder.call(_attend, query, key, value, frames)
    return _attend(query, key, value, frames)


def _attend(query: Tensor, key: Tensor, value: Tensor, frames: int) -> Tensor:
    pixels = query.shape[2] // frames
    parts = []
    for frame in range(frames):
        end = (frame + 1) * pixels
        own = query[:, :, frame * pixels : end]
        parts.append(F.scaled_dot_product_attention(own, key[:, :, :end], value[:, :, :end]))
    return torch.cat(parts, dim=2) if frames > 1 else parts[0]


def mid_block(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`HunyuanVideoMidBlock3D`: its residual blocks, and causal attention that needs no mask."""
    x = module.resnets[0](hidden_states)
    for attention, resnet in zip(module.attentions, module.resnets[1:], strict=True):
        x = resnet(x if attention is None else _attention(attention, x))
    return x


def why_mid_block_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this block, or None."""
    if getattr(module, "gradient_checkpointing", False):
        return "it checkpoints its activations"
    for attention in module.attentions:
        if attention is None:
            continue
        kind = type(attention.processor).__name__
        if kind != "AttnProcessor2_0":
            return f"its attention runs a {kind}, the rule is for AttnProcessor2_0"
        for name in ("spatial_norm", "norm_q", "norm_k"):
            if getattr(attention, name, None) is not None:
                return f"its attention has a {name}, the rule is for one without"
    return None


def attention_block(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanVideo15AttnBlock`: causal attention that needs no mask."""
    batch, channels, frames, height, width = x.shape
    y = module.norm(x)
    query, key, value = (
        part(y).reshape(batch, channels, -1).permute(0, 2, 1).unsqueeze(1).contiguous()
        for part in (module.to_q, module.to_k, module.to_v)
    )
    y = attend(query, key, value, frames)
    y = y.squeeze(1).reshape(batch, frames, height, width, channels).permute(0, 4, 1, 2, 3)
    return module.proj_out(y) + x


def _attention(attention: nn.Module, x: Tensor) -> Tensor:
    """As diffusers' `Attention` with `AttnProcessor2_0` computes it, but for the mask."""
    frames, height, width = x.shape[2:]
    residual = x.permute(0, 2, 3, 4, 1).flatten(1, 3)
    y = residual
    if attention.group_norm is not None:
        y = attention.group_norm(y.transpose(1, 2)).transpose(1, 2)
    batch, length = y.shape[:2]
    query, key, value = (
        part(y).view(batch, length, attention.heads, -1).transpose(1, 2)
        for part in (attention.to_q, attention.to_k, attention.to_v)
    )
    y = attend(query, key, value, frames).transpose(1, 2).reshape(batch, length, -1)
    y = attention.to_out[1](attention.to_out[0](y))
    if attention.residual_connection:
        y = y + residual
    y = y / attention.rescale_output_factor
    return y.unflatten(1, (frames, height, width)).permute(0, 4, 1, 2, 3)
