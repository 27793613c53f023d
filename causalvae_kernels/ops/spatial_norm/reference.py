"""CogVideoX's spatial norm and SiLU in pure PyTorch: define `spatial_norm`.

As `CogVideoXSpatialNorm3D` of diffusers computes it (models/autoencoders/autoencoder_kl_cogvideox.py), with
its two 1x1x1 convolutions, which commute with the upsampling, done before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..norms.group_norm import affine, before_silu, group_norm, group_norm_gradients, standardise, wide
from .spec import SpatialNormArgs, has_lone_first


def upsample(small: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat to (T, H, W) by nearest neighbour, a lone first frame and the others each on their own."""
    frames, *pixels = size
    if not has_lone_first(frames):
        return F.interpolate(small, size=tuple(size))
    first = F.interpolate(small[:, :, :1], size=(1, *pixels))
    return torch.cat([first, F.interpolate(small[:, :, 1:], size=(frames - 1, *pixels))], dim=2)


def sum_repeats(grad: Tensor, small: Sequence[int]) -> Tensor:
    """Return the transpose of `upsample`: what each latent pixel was repeated to, summed to (t, h, w)."""
    lone = has_lone_first(grad.shape[2])
    for dim, count in zip((4, 3, 2), reversed(small), strict=True):
        index = _source(grad.shape[dim], count, lone and dim == 2, grad.device)
        shape = [count if d == dim else n for d, n in enumerate(grad.shape)]
        grad = grad.new_zeros(shape).index_add(dim, index, grad)
    return grad


def _source(size: int, small: int, lone_first: bool, device: torch.device) -> Tensor:
    """Return which of `small` positions each of `size` takes by nearest neighbour."""
    numbers = torch.arange(small, dtype=torch.float32, device=device).view(1, 1, -1)
    if not lone_first:
        return F.interpolate(numbers, size=size).flatten().long()
    rest = F.interpolate(numbers[..., 1:], size=size - 1)
    return torch.cat([numbers[..., :1], rest], dim=2).flatten().long()


def spatial_norm_reference(args: SpatialNormArgs) -> Tensor:
    """Normalise, multiply, add, activate, and round each time."""
    size = args.x.shape[2:]
    y = group_norm(args.x, args.num_groups, args.weight, args.bias, args.eps)
    y = y * upsample(args.scale, size) + upsample(args.shift, size)
    return F.silu(y) if args.silu else y


def spatial_norm_vjp(
    grad: Tensor,
    needs: set[str],
    given: frozenset[str],
    *,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> dict[str, Tensor | None]:
    """Compute the steps again, in float32 at least, and go back through them."""
    size, small = x.shape[2:], scale.shape[2:]
    standard, rstd = standardise(x, num_groups, eps)
    normed = affine(standard, weight, bias)
    factor = upsample(wide(scale), size)
    grad = before_silu(grad, normed * factor + upsample(wide(shift), size), silu)
    grads: dict[str, Tensor | None] = {}
    if needs & {"x", "weight", "bias"}:
        grads |= group_norm_gradients(grad * factor, x, standard, rstd, weight)
        if bias is not None:
            grads["bias"] = grads["bias"].to(bias.dtype)
    if "scale" in needs:
        grads["scale"] = sum_repeats(grad * normed, small).to(scale.dtype)
    if "shift" in needs:
        grads["shift"] = sum_repeats(grad, small).to(shift.dtype)
    return grads
