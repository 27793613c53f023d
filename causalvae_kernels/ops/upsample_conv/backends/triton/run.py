"""The Triton launches of an upsampling convolution."""

from __future__ import annotations

from .....core.triton_launch import Launch
from ....causal_conv3d.backends.triton.fold import folded
from ....causal_conv3d.backends.triton.kernels import direct
from ....causal_conv3d.backends.triton.tiles import Tile, choose
from ...spec import UpsampleArgs
from . import call_of
from .plan import UpsamplePlan


def launches(
    found: UpsamplePlan, args: UpsampleArgs, capability: int, tile: Tile | None = None
) -> list[Launch]:
    """Return the kernels of a plan, in order.

    Args:
        found: The plan.
        args: Those of the op.
        capability: Of the GPU, such as 90.
        tile: How every part is cut; default: chosen for each.
    """
    if found.fold is None:
        kernels, before = [args.weight], []
    else:
        kernels, fold = folded(args.weight, found.fold)
        before = [fold]
    convolutions = []
    for part in found.parts:
        call = call_of(part, kernels[part.phase], found, args)
        convolutions.append(direct(call, choose(call, capability, tile)))
    return [*before, *convolutions]
