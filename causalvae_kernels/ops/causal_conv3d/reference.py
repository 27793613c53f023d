"""Causal 3D convolution in pure PyTorch: pad, convolve, add. Defines `causal_conv3d`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..causal_pad3d.reference import causal_pad3d_reference, causal_pad3d_vjp
from ..causal_pad3d.spec import PadArgs
from .framework import conv3d
from .spec import ConvArgs, paddings


def causal_conv3d_reference(args: ConvArgs) -> Tensor:
    """Pad a copy of the input, call the framework's convolution, add the residual."""
    x, pad = args.x, args.pad
    if pad.copies:
        x = causal_pad3d_reference(PadArgs.of_conv(x, args.initial_state, pad, args.temporal_mode))
    y = conv3d(x, args.weight, args.bias, args.stride, (0, *pad.implicit), args.dilation)
    return y if args.residual is None else y + args.residual


def causal_conv3d_vjp(
    grad: Tensor,
    needs: set[str],
    given: frozenset[str],
    *,
    x: Tensor,
    weight: Tensor,
    initial_state: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    **_: object,
) -> dict[str, Tensor | None]:
    """Pad again (cheap), then the framework's backward convolution, then the transpose of the padding."""
    pad = paddings(weight.shape[2:], dilation, temporal_mode, spatial_mode)
    padded = x
    if pad.copies:
        padded = causal_pad3d_reference(PadArgs.of_conv(x, initial_state, pad, temporal_mode))
    grad_padded, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        padded,
        weight,
        [weight.shape[0]] if "bias" in given else None,
        list(stride),
        [0, *pad.implicit],
        list(dilation),
        False,
        [0, 0, 0],
        1,
        [bool(needs & {"x", "initial_state"}), "weight" in needs, "bias" in needs],
    )
    grads = {"weight": grad_weight, "bias": grad_bias, "residual": grad, "x": grad_padded}
    if needs & {"x", "initial_state"} and pad.copies:
        grads |= causal_pad3d_vjp(
            grad_padded,
            needs,
            given,
            causal_padding=pad.causal,
            spatial_padding=pad.explicit,
            temporal_mode=temporal_mode,
            spatial_mode=pad.explicit_mode,
        )
    return grads
