"""Averaging, padding and convolution in pure PyTorch. Defines `downsample_conv`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..causal_conv3d.framework import conv3d
from .spec import STRIDE, DownsampleArgs


def downsample_conv_reference(args: DownsampleArgs) -> Tensor:
    """Average pairs of frames, pad a copy below and to the right, convolve with stride 2."""
    padded = _padded(args.x, args.compress_time)
    return conv3d(padded, args.weight, args.bias, STRIDE, (0, 0, 0), (1, 1, 1))


def _padded(x: Tensor, compress_time: bool) -> Tensor:
    return F.pad(averaged(x) if compress_time else x, (0, 1, 0, 1))


def averaged(x: Tensor) -> Tensor:
    """Return the averages of pairs of frames, behind a first one that is left over."""
    lone = x.shape[2] % 2
    # Halving first is exact and cannot overflow float16; the sum is rounded once, as in avg_pool1d.
    pairs = 0.5 * x[:, :, lone::2] + 0.5 * x[:, :, lone + 1 :: 2]
    return torch.cat([x[:, :, :lone], pairs], dim=2)


def downsample_conv_vjp(
    grad: Tensor,
    needs: set[str],
    given: frozenset[str],
    *,
    x: Tensor,
    weight: Tensor,
    compress_time: bool,
    **_: object,
) -> dict[str, Tensor | None]:
    """Average and pad again (cheap), then the framework's backward convolution, half to each of a pair."""
    grad_padded, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        _padded(x, compress_time),
        weight,
        [weight.shape[0]] if "bias" in given else None,
        list(STRIDE),
        [0, 0, 0],
        [1, 1, 1],
        False,
        [0, 0, 0],
        1,
        [name in needs for name in ("x", "weight", "bias")],
    )
    grads = {"weight": grad_weight, "bias": grad_bias}
    if "x" in needs:
        grad_x = grad_padded[..., :-1, :-1]
        if compress_time:
            lone = x.shape[2] % 2
            halves = 0.5 * grad_x[:, :, lone:]
            grad_x = torch.cat([grad_x[:, :, :lone], halves.repeat_interleave(2, dim=2)], dim=2)
        grads["x"] = grad_x
    return grads
