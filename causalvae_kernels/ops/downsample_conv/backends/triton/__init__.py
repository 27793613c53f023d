"""Downsampling convolution in Triton, on NVIDIA GPUs: zeros are masks of the loads, averages written once.

The kernel is that of `causal_conv3d` (docs/design/triton.md). Pairs of frames are averaged by a pass of its
own: in the kernel's loads each pair would be read for every tap that sees it.
"""

from __future__ import annotations

from torch import Tensor

from .....core.backend import Backend
from .....core.gpu_arch import capability_of
from ....causal_conv3d.backends.triton import tuned_tile, why_not
from ....causal_conv3d.backends.triton.tiles import Tile
from ...measurements import measured
from ...spec import DownsampleArgs, moves_averaging_once


def _convolve(out: Tensor, args: DownsampleArgs, precision: str) -> None:
    convolve(out, args, tuned_tile(measured(args, precision, out)))


def convolve(out: Tensor, args: DownsampleArgs, tile: Tile | None = None) -> None:
    """Write the result of a call; `tile`: as `choose` takes it."""
    from .run import launches

    for launch in launches(out, args, capability_of(out.device), tile):
        launch.run()


DOWNSAMPLE = Backend("triton", _convolve, why_not=why_not, moves=moves_averaging_once)
