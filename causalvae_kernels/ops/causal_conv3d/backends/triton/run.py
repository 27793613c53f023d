"""Runs a convolution with a given tile."""

from __future__ import annotations

from .....core.triton_launch import Launch
from .call import Call
from .fold import fold_single_frame
from .kernels import direct
from .tiles import Tile


def launches(call: Call, tile: Tile) -> list[Launch]:
    """Return the kernels that compute `call.out`, in order.

    Args:
        call: The convolution.
        tile: What `choose` returned, or another one.
    """
    call, before = fold_single_frame(call)
    return [*before, direct(call, tile)]


def run(call: Call, tile: Tile) -> None:
    """Put the kernels that compute `call.out` on the current stream; nothing waits for them."""
    for launch in launches(call, tile):
        launch.run()
