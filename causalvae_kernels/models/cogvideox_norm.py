"""CogVideoX's spatial norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .norms import scaled_group_norm, takes
from .swap import Link


def spatial_norm(
    module: nn.Module, link: Link, f: Tensor, zq: Tensor, conv_cache: dict[str, Any] | None = None
) -> tuple[Tensor, dict[str, None]]:
    """`CogVideoXSpatialNorm3D`: its two 1x1x1 convolutions run at latent resolution, before the upsampling.

    A pointwise convolution commutes with repeating pixels, so scale and shift are computed once per latent
    pixel instead of once per output pixel (64 to 256 times fewer), and no cache is kept for them.
    """
    norm = module.norm_layer
    if not takes((norm.weight, norm.bias), f):
        return type(module).forward(module, f, zq, conv_cache)
    op = scaled_group_norm(norm, link, module.conv_y.conv(zq), module.conv_b.conv(zq), f)
    return op(f, activation=None), {"conv_y": None, "conv_b": None}
