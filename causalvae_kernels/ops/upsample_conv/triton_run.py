"""The Triton launches of an upsampling convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.triton_launch import Launch
from ..causal_conv3d.triton_fold import folded
from ..causal_conv3d.triton_kernels import direct
from ..causal_conv3d.triton_tiles import Tile, choose
from .triton import call_of
from .triton_plan import UpsamplePlan


def launches(
    found: UpsamplePlan, arguments: Sequence[Any], capability: int, tile: Tile | None = None
) -> list[Launch]:
    """Return the kernels of a plan, in order.

    Args:
        found: The plan.
        arguments: The operator's, but the precision.
        capability: Of the GPU, such as 90.
        tile: How every part is cut; default: chosen for each.
    """
    weight = arguments[1]
    if found.fold is None:
        kernels, before = [weight], []
    else:
        kernels, fold = folded(weight, found.fold)
        before = [fold]
    convolutions = []
    for part in found.parts:
        call = call_of(part, kernels[part.phase], found, *arguments)
        convolutions.append(direct(call, choose(call, capability, tile)))
    return [*before, *convolutions]
