"""The rules for diffusers' `AutoencoderKLLTXVideo` and `AutoencoderKLLTX2Video`.

LTX-2 differs in words: whether a convolution is causal is said in every call, and its RMS norm is a class of
its own. Both may look ahead: half of the frames of padding stand behind.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..coder import record as recording
from ..core.layout import is_channels_last_3d
from ..core.precision import autocast_dtype, resolve_precision
from .conv import Conv, convolve, is_small, leaves, why_conv3d_left
from .norms import rms_norm
from .recorded import coder, record_rms_norm
from .swap import Family, Link, Rule, register_family


def causal_conv(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`LTXVideoCausalConv3d`: repeated frames before and behind the clip are read, not written."""
    if _keeps_conv(link, hidden_states):
        return type(module).forward(module, hidden_states)
    return convolve(conv_of(module, module.is_causal, hidden_states), link, hidden_states)[0]


def causal_conv2(module: nn.Module, link: Link, hidden_states: Tensor, causal: bool = True) -> Tensor:
    """`LTX2VideoCausalConv3d`: repeated frames before and behind the clip are read, not written."""
    if _keeps_conv(link, hidden_states):
        return type(module).forward(module, hidden_states, causal)
    return convolve(conv_of(module, causal, hidden_states), link, hidden_states)[0]


def _keeps_conv(link: Link, x: Tensor) -> bool:
    """Whether the original convolves: small or no frames, or a layout that its `cat` changes."""
    exact = resolve_precision(link.precision) == "exact"
    return leaves(link, x) or (exact and is_channels_last_3d(x))


def conv_of(module: nn.Module, causal: bool, x: Tensor) -> Conv:
    """Return what an `LTXVideoCausalConv3d` or `LTX2VideoCausalConv3d` computes of frames like these.

    Copies of a single frame may as well all stand in front of it: then the op knows them for equal.
    """
    conv = module.conv
    tail_room = 0 if causal or x.shape[2] == 1 else (conv.kernel_size[0] - 1) // 2
    return Conv(
        conv.weight, conv.bias, stride=conv.stride, spatial_mode=conv.padding_mode, tail_room=tail_room
    )


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this convolution, or None."""
    conv = module.conv
    if tuple(conv.kernel_size) != tuple(module.kernel_size):
        return f"kernel size is {conv.kernel_size}, the module pads for {module.kernel_size}"
    if conv.kernel_size[0] % 2 == 0:
        return f"kernel size is {conv.kernel_size}: an even number of frames has no middle one"
    padding = (0, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2)
    return why_conv3d_left(conv, padding, ("zeros", "reflect", "replicate"))


def norm(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`RMSNorm` or `PerChannelRMSNorm`: `rms_norm`, over the axis of the channels."""
    axis = _axis(module)
    if x.dim() != 5 or autocast_dtype(x) is not None:
        return type(module).forward(module, x)
    if recording.current() is not None:
        return record_rms_norm(module, x, None, None, module.eps, axis)
    if is_small(link, x):
        return type(module).forward(module, x)
    video = x.movedim(axis, 1)
    made = rms_norm(x.new_ones(video.shape[1]), None, link, module.eps)(video, activation=None)
    return made.movedim(1, axis)


def why_norm_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `RMSNorm` or `PerChannelRMSNorm`, or None."""
    if any(p is not None for p in module._parameters.values()):
        return "it has a weight, which LTX's have not"
    if _axis(module) not in (1, -1):
        return f"it is over dimension {module.channel_dim}, expected 1"
    return None


def _axis(module: nn.Module) -> int:
    return getattr(module, "channel_dim", -1)


def _register(model: str, prefix: str, norm_name: str, conv_rule: object) -> None:
    conv = f"{prefix}CausalConv3d"
    register_family(
        Family(
            model=model,
            rules={
                f"{prefix}Encoder3d": Rule(coder),
                f"{prefix}Decoder3d": Rule(coder),
                # Where a module inside is hooked, the other blocks are still recorded.
                f"{prefix}ResnetBlock3d": Rule(coder),
                conv: Rule(conv_rule, (("conv", "Conv3d"),), why_conv_left, exact=True),
                norm_name: Rule(norm, why_left=why_norm_left, is_recorded=True),
            },
            needs_no_rule={
                "Conv3d": "pads no frames: it is pointwise, or the module that calls it pads",
                "LayerNorm": "normalises what a pointwise convolution reads",
                "Linear": "a projection of the time embedding",
            },
        )
    )


_register("AutoencoderKLLTXVideo", "LTXVideo", "RMSNorm", causal_conv)
_register("AutoencoderKLLTX2Video", "LTX2Video", "PerChannelRMSNorm", causal_conv2)
