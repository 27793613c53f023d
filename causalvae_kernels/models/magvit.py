"""The rules for diffusers' `AutoencoderKLMagvit` (EasyAnimate).

Its convolutions keep the last frames of a chunk in `prev_features`. They still do: that attribute is the op's
state, so that swapped and unswapped modules can be mixed. The model itself clears it only behind a clip that
did not fail.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import causal_conv3d
from ..temporal import FrameBuffer
from .clip_state import cleared
from .conv import Conv, convolve, is_small, why_conv3d_left
from .frame_norms import frame_norm
from .hooks import is_plain, type_name
from .norms import backend_options, group_norm, takes
from .producers import activated, silu
from .swap import Family, Link, Rule, register_family, run

_CONV = "EasyAnimateCausalConv3d"


def causal_conv(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`EasyAnimateCausalConv3d`: one convolution, not one for every output frame."""
    if is_small(link, hidden_states) or not _cache_fits(module, hidden_states):
        return type(module).forward(module, hidden_states)
    if module.t_stride == 1 or module.prev_features is None:
        return _convolve(module, link, hidden_states)
    # A chunk of an even number of frames goes on from the last frame before it, not from the last two.
    frames, conv = module.temporal_padding, _conv_of(module)
    seen = torch.cat([module.prev_features[:, :, 1 - frames :], hidden_states], dim=2)
    options = {**conv.options(link), "temporal_mode": "valid"}
    y = causal_conv3d(seen, conv.weight, conv.bias, **options)
    module.prev_features = seen[:, :, -frames:].clone()
    return y


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `EasyAnimateCausalConv3d`, or None."""
    kernel, frames = module.kernel_size, module.temporal_padding
    if kernel[0] != 3 or frames != 2 or module.stride[0] != module.t_stride:
        return f"kernel size {kernel} with {frames} frames of padding, the rule is for kernels of 3 frames"
    padding = tuple(module.padding)
    halves = tuple((k - 1) // 2 for k in kernel[1:])
    return why_conv3d_left(module, padding if padding in ((0, 0, 0), (0, *halves)) else (0, *halves))


def resnet(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`EasyAnimateResidualBlock3D`: norm and SiLU are written where a convolution reads; the second adds."""
    conv1, conv2 = module.conv1, module.conv2
    # The second sees as many frames and pixels as the first. Dropout draws in the layout that it sees.
    fits = _cache_fits(conv1, hidden_states) and _cache_fits(conv2, hidden_states)
    drops = module.dropout.training and module.dropout.p > 0
    if is_small(link, hidden_states) or drops or not fits:
        return type(module).forward(module, hidden_states)
    shortcut = module.shortcut(hidden_states)
    hidden = _convolve(conv1, link, _activated(module, link, module.norm1, conv1, hidden_states))
    y = _activated(module, link, module.norm2, conv2, hidden, owned=True)
    out = _convolve(conv2, link, y, shortcut)
    return out if module.output_scale_factor == 1 else out / module.output_scale_factor


def why_resnet_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this residual block, or None."""
    if module.conv1.t_stride != 1 or module.conv2.t_stride != 1:
        return "its convolutions have a stride in time"
    return why_conv_left(module.conv1) or why_conv_left(module.conv2)


def pointwise(module: nn.Module, link: Link, input: Tensor) -> Tensor:
    """`Conv3d` of 1x1x1: `causal_conv3d`; a shortcut, or the convolutions before and behind the latents."""
    if input.dim() != 5 or is_small(link, input):
        return type(module).forward(module, input)
    return causal_conv3d(input, module.weight, module.bias, **backend_options(link))


def why_pointwise_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `Conv3d`, or None."""
    if tuple(module.kernel_size) != (1, 1, 1) or tuple(module.stride) != (1, 1, 1):
        return f"its kernel size is {module.kernel_size}, the rule is for pointwise ones"
    return why_conv3d_left(module, (0, 0, 0))


def _convolve(
    module: nn.Module, link: Link, x: Tensor | FrameBuffer, residual: Tensor | None = None
) -> Tensor:
    """Convolve; the state goes in and out of the module, where nothing is changed if this fails."""
    y, state = convolve(_conv_of(module), link, x, module.prev_features, residual)
    module.prev_features = state
    return y


def _conv_of(module: nn.Module) -> Conv:
    return Conv(
        module.weight,
        module.bias,
        stride=tuple(module.stride),
        spatial_mode="zeros" if any(module.padding) or max(module.kernel_size[1:]) == 1 else "valid",
        streams=True,
    )


def _cache_fits(module: nn.Module, x: Tensor) -> bool:
    """Whether this is a call for the op; the original says what is wrong with others."""
    if x.dim() != 5 or x.numel() == 0:
        return False
    past, frames = module.prev_features, module.temporal_padding
    if past is None:
        return True
    fits = past.shape[0] == x.shape[0] and past.shape[3:] == x.shape[3:]
    fits = fits and past.shape[1] == module.in_channels and past.shape[2] == frames and past.dtype == x.dtype
    return fits and (module.t_stride == 1 or x.shape[2] >= frames)


def _activated(
    module: nn.Module, link: Link, norm: nn.Module, conv: nn.Module, x: Tensor, *, owned: bool = False
) -> Tensor | FrameBuffer:
    """Return SiLU of a norm of `x`, over every frame by itself or over all of them, as the model has it."""
    memory = _conv_of(conv)
    if type_name(norm) == "GroupNorm" and is_plain(norm, run) and takes((norm.weight, norm.bias), x):
        op = frame_norm if module.spatial_group_norm else group_norm
        return activated(op(norm, link), link, memory, x, overwrite=owned)
    if not module.spatial_group_norm:
        return silu(link, memory, norm(x))
    frames = norm(x.transpose(1, 2).flatten(0, 1))
    return silu(link, memory, frames.unflatten(0, (x.shape[0], -1)).transpose(1, 2))


register_family(
    Family(
        model="AutoencoderKLMagvit",
        rules={
            _CONV: Rule(causal_conv, (), why_conv_left),
            "EasyAnimateResidualBlock3D": Rule(
                resnet,
                (("nonlinearity", "SiLU"), ("dropout", "Dropout"), ("conv1", _CONV), ("conv2", _CONV)),
                why_resnet_left,
            ),
            "Conv3d": Rule(pointwise, (), why_pointwise_left),
        },
        clip=cleared,
        needs_no_rule={"GroupNorm": "the block that it belongs to runs it"},
    )
)
