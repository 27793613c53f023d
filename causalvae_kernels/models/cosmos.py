"""The rules for diffusers' `AutoencoderKLCosmos`: norms of each frame, convolutions over space and time."""

from __future__ import annotations

from torch import Tensor, nn

from ..core.layout import is_channels_last_3d
from ..core.precision import resolve_precision
from .conv import Conv, convolve, leaves, why_weight_left
from .frame_norms import frame_norm
from .norms import group_norm, takes_norms
from .recorded import coder
from .swap import Family, Link, Rule, register_family

_CONV, _NORM = "CosmosCausalConv3d", "CosmosCausalGroupNorm"
_MODES = {"constant": "zeros", "replicate": "replicate", "reflect": "reflect"}


def causal_conv(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`CosmosCausalConv3d`: repeated frames and padded pixels are read, not written."""
    x = hidden_states
    exact = resolve_precision(link.precision) == "exact"
    if leaves(link, x) or (exact and is_channels_last_3d(x)):
        return type(module).forward(module, x)
    return convolve(conv_of(module), link, x)[0]


def conv_of(module: nn.Module) -> Conv:
    """Return what a `CosmosCausalConv3d` computes."""
    padded = module.spatial_pad[0] or module.kernel_size[1:] == (1, 1)
    mode = _MODES[module.pad_mode] if padded else "valid"
    return Conv(module.weight, module.bias, stride=tuple(module.stride), spatial_mode=mode)


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this convolution, or None."""
    kernel, stride = tuple(module.kernel_size), tuple(module.stride)
    if module.temporal_pad != kernel[0] - 1:
        return f"it pads {module.temporal_pad} frames, expected {kernel[0] - 1}; a downsampler runs it"
    if tuple(module.dilation) != (1, 1, 1) or module.groups != 1 or any(module.padding):
        return f"it is {module}, the rule is for one without dilation, groups and padding of its own"
    if any(k % 2 == 0 for k in kernel[1:]) or not all(s in (1, 2) for s in stride):
        return f"kernel size {kernel} with stride {stride} is not one that causal_conv3d takes"
    if module.pad_mode not in _MODES:
        return f"pad_mode is {module.pad_mode!r}, expected one of {', '.join(_MODES)}"
    top, bottom, left, right = module.spatial_pad
    whole = ((kernel[1] - 1) // 2,) * 2 + ((kernel[2] - 1) // 2,) * 2
    if (top, bottom, left, right) not in (whole, (0, 0, 0, 0)):
        return f"it pads {module.spatial_pad} pixels, expected {whole} or none"
    return why_weight_left(module)


def norm(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`CosmosCausalGroupNorm`: one group is normalised frame by frame, several over the clip."""
    if leaves(link, hidden_states) or not takes_norms((module.norm,), hidden_states):
        return type(module).forward(module, hidden_states)
    op = (frame_norm if module.num_groups == 1 else group_norm)(module.norm, link)
    return op.op(hidden_states, *op.arguments, activation=None, **op.options)


register_family(
    Family(
        model="AutoencoderKLCosmos",
        rules={
            "CosmosEncoder3d": Rule(coder),
            "CosmosDecoder3d": Rule(coder),
            # Where a module inside is hooked, the other blocks are still recorded.
            "CosmosResnetBlock3d": Rule(coder),
            _NORM: Rule(norm, (("norm", "GroupNorm"),)),
            _CONV: Rule(causal_conv, why_left=why_conv_left, exact=True),
        },
        needs_no_rule={"GroupNorm": "the norm that it belongs to calls it"},
    )
)
