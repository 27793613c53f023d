"""Group norm and SiLU in pure PyTorch: define `group_norm_silu` and `group_norm_silu_`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..norms.group_norm import affine, before_silu, group_norm, group_norm_gradients, standardise


def group_norm_silu_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float, silu: bool
) -> Tensor:
    """Normalise, round, activate, round."""
    y = group_norm(x, num_groups, weight, bias, eps)
    return F.silu(y) if silu else y


def group_norm_silu__reference(
    out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> None:
    """Write the same into `out`, which may be `x`."""
    out.copy_(group_norm_silu_reference(x, weight, bias, num_groups, eps, silu))


def group_norm_silu_vjp(
    grad: Tensor,
    needs: set[str],
    given: frozenset[str],
    *,
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> dict[str, Tensor | None]:
    """Normalise again, in float32 at least, and go back through both steps."""
    standard, rstd = standardise(x, num_groups, eps)
    grad = before_silu(grad, affine(standard, weight, bias), silu)
    grads = group_norm_gradients(grad, x, standard, rstd, weight)
    if bias is not None:
        grads["bias"] = grads["bias"].to(bias.dtype)
    return grads
