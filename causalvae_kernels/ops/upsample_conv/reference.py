"""Upsampling and convolution in pure PyTorch: repeat, pad, convolve. Defines `upsample_conv`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..causal_conv3d.reference import causal_conv3d_reference, causal_conv3d_vjp
from ..causal_conv3d.spec import ConvArgs
from .spec import UpsampleArgs

_ONES = (1, 1, 1)


def upsample_conv_reference(args: UpsampleArgs) -> Tensor:
    """Repeat pixels and frames, then convolve causally."""
    return causal_conv3d_reference(
        ConvArgs(
            upsampled(args.x, args.scale, args.first_chunk),
            args.weight,
            args.bias,
            upsampled_state(args.initial_state, args.weight, args.scale),
            temporal_mode=args.temporal_mode,
            spatial_mode=args.spatial_mode,
        )
    )


def upsampled(x: Tensor, scale: Sequence[int], first_single: bool) -> Tensor:
    """Return `x` with pixels, and frames but for a single first one, repeated by nearest neighbour."""
    if scale[1] == 2:
        x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0))
    return double_frames(x, first_single) if scale[0] == 2 else x


def double_frames(x: Tensor, first_single: bool) -> Tensor:
    """Return every frame twice, but for a single first one: 2 T or 2 T - 1 frames."""
    lone = int(first_single)
    return x.index_select(2, (torch.arange(lone, 2 * x.shape[2], device=x.device)) // 2)


def upsampled_state(initial_state: Tensor | None, weight: Tensor, scale: Sequence[int]) -> Tensor | None:
    """Return the kT - 1 frames before the upsampled ones, if there are any."""
    if initial_state is None or weight.shape[2] == 1:
        return None
    return upsampled(initial_state, scale, False)


def upsample_conv_vjp(
    grad: Tensor,
    needs: set[str],
    given: frozenset[str],
    *,
    x: Tensor,
    weight: Tensor,
    initial_state: Tensor | None,
    scale: Sequence[int],
    first_chunk: bool,
    temporal_mode: str,
    spatial_mode: str,
    **_: object,
) -> dict[str, Tensor | None]:
    """Upsample again (cheap), then the convolution's gradients, then the transpose of the upsampling."""
    grads = causal_conv3d_vjp(
        grad,
        needs,
        given,
        x=upsampled(x, scale, first_chunk),
        weight=weight,
        initial_state=upsampled_state(initial_state, weight, scale),
        stride=_ONES,
        dilation=_ONES,
        temporal_mode=temporal_mode,
        spatial_mode=spatial_mode,
    )
    for name, first_single in (("x", first_chunk), ("initial_state", False)):
        if name in needs and grads.get(name) is not None:
            grads[name] = _summed(grads[name], scale, first_single)
    return grads


def _summed(grad: Tensor, scale: Sequence[int], first_single: bool) -> Tensor:
    """Add up what each element was repeated to."""
    for dim in (3, 4):
        if scale[dim - 2] == 2:
            grad = grad.unflatten(dim, (grad.shape[dim] // 2, 2)).sum(dim + 1)
    if scale[0] == 1:
        return grad
    lone = int(first_single)
    pairs = grad[:, :, lone:]
    pairs = pairs.unflatten(2, (pairs.shape[2] // 2, 2)).sum(3)
    return torch.cat([grad[:, :, :lone], pairs], dim=2)
