"""Group norm and SiLU in pure PyTorch: define `group_norm`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..norms.group_norm import affine, before_silu, group_norm, group_norm_gradients, standardise
from .spec import GroupNormArgs


def group_norm_reference(args: GroupNormArgs) -> Tensor:
    """Normalise, round, activate, round."""
    y = group_norm(args.x, args.num_groups, args.weight, args.bias, args.eps)
    return F.silu(y) if args.silu else y


def group_norm_vjp(
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
