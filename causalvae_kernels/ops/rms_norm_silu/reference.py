"""Wan's RMS norm over channels and SiLU in pure PyTorch: define `rms_norm_silu` and `rms_norm_silu_`.

As `WanRMS_norm` of diffusers computes it (models/autoencoders/autoencoder_kl_wan.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..norms.group_norm import before_silu, per_channel, wide
from .spec import EPS


def rms_norm_silu_reference(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Normalise in float32 at least, round; scale, multiply, add, activate, and round each time."""
    y = F.normalize(wide(x), dim=1, eps=EPS).to(x.dtype) * x.shape[1] ** 0.5 * weight.view(-1, 1, 1, 1)
    y = y if bias is None else y + bias.view(-1, 1, 1, 1)
    return F.silu(y) if silu else y


def rms_norm_silu__reference(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> None:
    """Write the same into `out`, which may be `x`."""
    out.copy_(rms_norm_silu_reference(x, weight, bias, silu))


def rms_norm_silu_vjp(
    grad: Tensor,
    needs: set[str],
    given: frozenset[str],
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    silu: bool,
) -> dict[str, Tensor | None]:
    """Compute the steps again, in float32 at least, and go back through them.

    With r the norm of a pixel, n = x / max(r, EPS) and g the gradient of n: dx = (g - n * sum(n * g)) / r,
    and dx = g / EPS where r is below EPS.
    """
    norm = torch.linalg.vector_norm(wide(x), dim=1, keepdim=True)
    divisor = norm.clamp_min(EPS)
    normalised = wide(x) / divisor
    factor = per_channel(weight) * x.shape[1] ** 0.5
    y = normalised * factor
    y = y if bias is None else y + per_channel(bias)
    grad = before_silu(grad, y, silu)
    g = grad * factor
    inner = (g * normalised).sum(1, keepdim=True)
    grad_x = (g - normalised * inner.where(norm >= EPS, 0.0)) / divisor
    pixels = (0, 2, 3, 4)
    grads = {
        "x": grad_x.to(x.dtype),
        "weight": ((grad * normalised).sum(pixels) * x.shape[1] ** 0.5).to(weight.dtype),
    }
    if bias is not None:
        grads["bias"] = grad.sum(pixels).to(bias.dtype)
    return grads
