"""Wan's norm."""

from __future__ import annotations

from torch import Tensor, nn

from .conv import is_small
from .norms import NormOp, rms_norm, takes
from .swap import Link


def norm(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`WanRMS_norm`: `rms_norm`, of frames or of images."""
    if x.dim() not in (4, 5) or is_small(link, x) or not _takes(module, x):
        return type(module).forward(module, x)
    op = norm_of(module, link)
    y = op(x.unsqueeze(2) if x.dim() == 4 else x, activation=None)
    return y.squeeze(2) if x.dim() == 4 else y


def why_norm_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `WanRMS_norm`, or None."""
    if not module.channel_first:
        return "its channels come last"
    if module.scale != module.gamma.numel() ** 0.5:
        return f"its scale is {module.scale}, the rule is for {module.gamma.numel()} ** 0.5"
    if not isinstance(module.bias, Tensor) and module.bias != 0:
        return f"its bias is {module.bias}, the rule is for a tensor or none"
    return None


def norm_of(module: nn.Module, link: Link) -> NormOp:
    """Return a `WanRMS_norm` as `ops.rms_norm`."""
    return rms_norm(module.gamma, _bias(module), link)


def _bias(module: nn.Module) -> Tensor | None:
    return module.bias if isinstance(module.bias, Tensor) else None


def _takes(module: nn.Module, x: Tensor) -> bool:
    bias = _bias(module)
    return takes((module.gamma, bias), x) and (bias is None or bias.dtype == module.gamma.dtype)
