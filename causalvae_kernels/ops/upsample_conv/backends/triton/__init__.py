"""Upsampling convolution in Triton, on NVIDIA GPUs: folded kernels on the small frames, a launch per phase.

The kernel is that of `causal_conv3d` (docs/design/triton.md), with taps that walk back where they must, and
outputs that are every second pixel.
"""

from __future__ import annotations

from torch import Tensor

from .....core.backend import Backend
from .....core.gpu_arch import capability_of
from ....causal_conv3d.backends.triton import tuned_tile, why_not
from ....causal_conv3d.backends.triton.call import Call
from ....causal_conv3d.backends.triton.tiles import Tile
from ...measurements import measured
from ...spec import UpsampleArgs, moves_by_phase
from .plan import Part, UpsamplePlan, plan_upsample


def _convolve(out: Tensor, args: UpsampleArgs, precision: str) -> None:
    convolve(out, args, tuned_tile(measured(args, precision, out)))


def convolve(out: Tensor, args: UpsampleArgs, tile: Tile | None = None) -> None:
    """Write the result of a call; `tile`: as `choose` takes it."""
    from .run import launches

    found = plan_upsample(out, args)
    for launch in launches(found, args, capability_of(out.device), tile):
        launch.run()
    for to, source in found.copies:
        to.copy_(source)


def call_of(part: Part, kernel: Tensor, found: UpsamplePlan, args: UpsampleArgs) -> Call:
    """Return the call of one part.

    Args:
        part: What it computes.
        kernel: The folded weights of its phase, or the weights themselves.
        found: The plan that the part is of.
        args: Those of the op.
    """
    fold = found.fold
    window = tuple(args.weight.shape[2:]) if fold is None else fold.window
    return Call(
        args.x,
        kernel,
        None if args.bias is None else args.bias.contiguous(),
        args.initial_state if found.causal else None,
        None,
        part.out,
        (1, 1, 1),
        part.dilation,
        window,
        window[1] * window[2] if fold is None else fold.taps_of_frames[0],
        found.causal,
        part.front,
        part.top,
        part.left,
        args.temporal_mode,
        args.spatial_mode,
    )


UPSAMPLE = Backend("triton", _convolve, why_not=why_not, moves=moves_by_phase)
