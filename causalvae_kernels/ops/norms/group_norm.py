"""Group norm of video by the framework, and its gradient in differentiable steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import HALVES


def careful_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, precision: str
) -> Tensor:
    """Return `group_norm`; on a CPU of a contiguous copy, but in the tier `exact`.

    In channels_last_3d the framework's loses digits there: 5e-3 relative for randn * 0.1 + 3 in float32.
    It goes by the strides, and of a single pixel these may be channels last in a contiguous tensor as well.
    """
    if x.device.type == "cpu" and precision != "exact":
        x = x.contiguous().flatten().view(x.shape)
    return group_norm(x, num_groups, weight, bias, eps)


def group_norm(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return the framework's group norm, which takes float32 parameters for half precision on a CPU only.

    `F.group_norm` adds a check, which refuses groups of one value.
    """
    parameters = [p for p in (weight, bias) if p is not None]
    if x.device.type != "cpu" and any(p.dtype != x.dtype for p in parameters):
        wide_parameters = (None if p is None else p.float() for p in (weight, bias))
        return torch.group_norm(x.float(), num_groups, *wide_parameters, eps).to(x.dtype)
    return torch.group_norm(x, num_groups, weight, bias, eps)


def activate(y: Tensor, silu: bool) -> Tensor:
    """Return SiLU of `y`, which is overwritten, or `y`."""
    return F.silu(y, inplace=True) if silu else y


def activate_into(out: Tensor, y: Tensor, silu: bool, precision: str) -> None:
    """Write SiLU of `y`, or `y`, into `out`; `y` may be overwritten.

    The last bits of the framework's SiLU depend on the layout, so the tier "exact" writes one pass more.
    """
    if silu and precision != "exact":
        torch.ops.aten.silu.out(y, out=out)
    else:
        out.copy_(activate(y, silu))


def wide(t: Tensor) -> Tensor:
    """Return half precision as float32."""
    return t.float() if t.dtype in HALVES else t


def per_channel(parameter: Tensor) -> Tensor:
    """Return a parameter of shape (C,) as (C, 1, 1, 1), float32 at least."""
    return wide(parameter).view(-1, 1, 1, 1)


def standardise(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return (x - mean) / sqrt(var + eps) over each group, shape of `x`, and 1 / sqrt(var + eps).

    The second has shape (B, G, 1, 1, 1, 1); both are float32 at least.
    """
    grouped = wide(x).unflatten(1, (num_groups, -1))
    variance, mean = torch.var_mean(grouped, dim=_GROUP, correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + eps)
    return ((grouped - mean) * rstd).flatten(1, 2), rstd


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return x * weight + bias, each of shape (C,), where given."""
    x = x if weight is None else x * per_channel(weight)
    return x if bias is None else x + per_channel(bias)


def before_silu(grad: Tensor, y: Tensor, silu: bool) -> Tensor:
    """Return the gradient of `y` from that of SiLU(y), float32 at least."""
    if not silu:
        return wide(grad)
    sigmoid = torch.sigmoid(y)  # silu_backward of the framework has no derivative
    return wide(grad) * (sigmoid * (1 + y * (1 - sigmoid)))


def group_norm_gradients(
    grad: Tensor, x: Tensor, standard: Tensor, rstd: Tensor, weight: Tensor | None
) -> dict[str, Tensor]:
    """Return the gradients of x, weight and bias, in the dtypes that autograd expects but for the bias.

    With h the standardised input and g = grad * weight, over each group:
    dx = rstd * (g - mean(g) - h * mean(g * h)).

    Args:
        grad: Of the norm's output, float32 at least, shape (B, C, T, H, W).
        x: The input.
        standard: What `standardise` returned: h,
        rstd: and 1 / sqrt(var + eps).
        weight: Shape (C,), or None.
    """
    num_groups = rstd.shape[1]
    scaled = grad if weight is None else grad * per_channel(weight)
    h, g = (t.unflatten(1, (num_groups, -1)) for t in (standard, scaled))
    grad_x = rstd * (g - g.mean(_GROUP, keepdim=True) - h * (g * h).mean(_GROUP, keepdim=True))
    grads = {"x": grad_x.flatten(1, 2).to(x.dtype), "bias": grad.sum(_ALL_BUT_CHANNELS)}
    if weight is not None:
        grads["weight"] = (grad * standard).sum(_ALL_BUT_CHANNELS).to(weight.dtype)
    return grads


_GROUP = (2, 3, 4, 5)
_ALL_BUT_CHANNELS = (0, 2, 3, 4)
