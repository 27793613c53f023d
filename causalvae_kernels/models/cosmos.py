"""The rules for diffusers' `AutoencoderKLCosmos`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .conv import is_small
from .cosmos_blocks import (
    CONV,
    NORM,
    attention,
    causal_conv,
    conv_of,
    downsample,
    norm,
    norm_of,
    project,
    resnet,
    upsample,
    why_conv_left,
    why_downsample_left,
    why_projection_left,
    why_resnet_left,
    why_upsample_left,
)
from .frame_norms import inner_format
from .norms import takes
from .producers import activated
from .swap import Family, Link, Rule, register_family

_PROJECTION = "CosmosConvProjection3d"


def encoder(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`CosmosEncoder3d`, channels last from its first convolution to its last."""
    if _leaves(module, link, hidden_states):
        return type(module).forward(module, hidden_states)
    x = _first(module, link, module.patch_embed(hidden_states))
    for block in (*module.down_blocks, module.mid_block):
        x = _run(module, block, x)
    return _last(module, link, x)


def decoder(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`CosmosDecoder3d`, channels last from its first convolution to its last."""
    if _leaves(module, link, hidden_states):
        return type(module).forward(module, hidden_states)
    x = module.mid_block(_first(module, link, hidden_states))
    for block in module.up_blocks:
        x = _run(module, block, x)
    return module.unpatch_embed(_last(module, link, x))


def why_coder_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this encoder or decoder, or None."""
    return why_projection_left(module.conv_out)


def _leaves(module: nn.Module, link: Link, x: Tensor) -> bool:
    norm = module.norm_out.norm
    return x.numel() == 0 or is_small(link, x) or not takes((norm.weight, norm.bias), x)


def _first(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    layout = inner_format(module, link, x, module.norm_out.norm, (NORM, "CosmosResnetBlock3d"))
    return module.conv_in(x.contiguous(memory_format=layout))


def _last(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    conv = conv_of(module.conv_out.conv_s)
    y = activated(norm_of(module.norm_out, link), link, conv, x)
    return project(module.conv_out, link, y).contiguous()


def _run(module: nn.Module, block: nn.Module, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() and module.gradient_checkpointing:
        return module._gradient_checkpointing_func(block, x)
    return block(x)


def _norm(name: str) -> tuple[tuple[str, str], ...]:
    return (name, NORM), (f"{name}.norm", "GroupNorm")


def _projection(name: str) -> tuple[tuple[str, str], ...]:
    return (name, _PROJECTION), (f"{name}.conv_s", CONV), (f"{name}.conv_t", CONV)


_CODER = (*_norm("norm_out"), *_projection("conv_out"))

register_family(
    Family(
        model="AutoencoderKLCosmos",
        rules={
            "CosmosEncoder3d": Rule(encoder, _CODER, why_coder_left),
            "CosmosDecoder3d": Rule(decoder, _CODER, why_coder_left),
            "CosmosResnetBlock3d": Rule(
                resnet,
                (
                    *_norm("norm1"),
                    *_projection("conv1"),
                    *_norm("norm2"),
                    ("dropout", "Dropout"),
                    *_projection("conv2"),
                ),
                why_resnet_left,
            ),
            "CosmosCausalAttention": Rule(attention),
            "CosmosDownsample3d": Rule(downsample, why_left=why_downsample_left),
            "CosmosUpsample3d": Rule(upsample, why_left=why_upsample_left),
            NORM: Rule(norm, (("norm", "GroupNorm"),)),
            CONV: Rule(causal_conv, why_left=why_conv_left, exact=True),
        },
        needs_no_rule={"GroupNorm": "the norm that it belongs to calls it"},
    )
)
