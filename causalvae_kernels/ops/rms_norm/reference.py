"""RMS norm over channels and SiLU in pure PyTorch: define `rms_norm`.

Without `eps` as `WanRMS_norm` of diffusers computes it (models/autoencoders/autoencoder_kl_wan.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..norms.group_norm import before_silu, per_channel, wide
from .spec import EPS, RmsNormArgs


def length(x: Tensor, eps: float) -> Tensor:
    """Return what every pixel is divided by, in float32 at least; it is times sqrt(C) what the mean gives."""
    norm = torch.linalg.vector_norm(wide(x), dim=1, keepdim=True)
    if eps:
        # Not the root of a sum of squares, which are beyond the range of float32 before a norm is.
        norm = torch.hypot(norm, norm.new_tensor((x.shape[1] * eps) ** 0.5))
    return norm.clamp_min(EPS)


def rms_norm_reference(args: RmsNormArgs) -> Tensor:
    """Normalise in float32 at least, round; scale, multiply, add, activate, and round each time."""
    x = args.x
    y = (wide(x) / length(x, args.eps)).to(x.dtype) * x.shape[1] ** 0.5 * args.weight.view(-1, 1, 1, 1)
    y = y if args.bias is None else y + args.bias.view(-1, 1, 1, 1)
    return F.silu(y) if args.silu else y


def rms_norm_vjp(
    grad: Tensor,
    needs: set[str],
    given: frozenset[str],
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float,
    silu: bool,
) -> dict[str, Tensor | None]:
    """Compute the steps again, in float32 at least, and go back through them.

    With r = sqrt(|x|^2 + C * eps), n = x / max(r, EPS) and g the gradient of n:
    dx = (g - n * sum(n * g)) / r, and dx = g / EPS where r is below EPS.
    """
    divisor = length(x, eps)
    normalised = wide(x) / divisor
    factor = per_channel(weight) * x.shape[1] ** 0.5
    y = normalised * factor
    y = y if bias is None else y + per_channel(bias)
    grad = before_silu(grad, y, silu)
    g = grad * factor
    inner = (g * normalised).sum(1, keepdim=True)
    grad_x = (g - normalised * inner.where(divisor > EPS, 0.0)) / divisor
    pixels = (0, 2, 3, 4)
    grads = {
        "x": grad_x.to(x.dtype),
        "weight": ((grad * normalised).sum(pixels) * x.shape[1] ** 0.5).to(weight.dtype),
    }
    if bias is not None:
        grads["bias"] = grad.sum(pixels).to(bias.dtype)
    return grads
