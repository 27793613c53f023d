"""Downsampling convolution in Triton, on NVIDIA GPUs: zeros are masks of the loads, averages written once.

The kernel is that of `causal_conv3d` (docs/triton.md). Pairs of frames are averaged by a pass of its own: in
the kernel's loads each pair would be read for every tap that sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...core import memory
from ...core.gpu_arch import capability_of
from ...core.layout import memory_format_of
from ...core.op import Backend
from ..causal_conv3d.triton import tuned_tile, why_not
from ..causal_conv3d.triton_tiles import Tile
from .shape_class import measured
from .spec import output_size
from .traffic import moves_averaging_once


def _convolve(*arguments: Any) -> Tensor:
    return convolve(arguments[:-1], tuned_tile(measured(*arguments)))


def convolve(arguments: Sequence[Any], tile: Tile | None = None) -> Tensor:
    """Return the output for the operator's arguments but the precision; `tile`: as `choose` takes it."""
    from .triton_run import launches

    out = empty_output(*arguments)
    for launch in launches(out, *arguments, capability_of(out.device), tile):
        launch.run()
    return out


def empty_output(x: Tensor, weight: Tensor, bias: Tensor | None, compress_time: bool) -> Tensor:
    """Return the output, allocated."""
    return memory.empty(
        (x.shape[0], weight.shape[0], *output_size(x.shape, compress_time)),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x, weight),
    )


DOWNSAMPLE = Backend("triton", _convolve, why_not, moves=moves_averaging_once)
