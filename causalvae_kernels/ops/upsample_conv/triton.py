"""Upsampling convolution in Triton, on NVIDIA GPUs: folded kernels on the small frames, a launch per phase.

The kernel is that of `causal_conv3d` (docs/triton.md), with taps that walk back where they must, and outputs
that are every second pixel.
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
from ..causal_conv3d.triton_call import Call
from ..causal_conv3d.triton_tiles import Tile
from .shape_class import measured
from .spec import output_size
from .traffic import moves_by_phase
from .triton_plan import Part, UpsamplePlan, plan


def _convolve(*arguments: Any) -> Tensor:
    return convolve(arguments[:-1], tuned_tile(measured(*arguments)))


def convolve(arguments: Sequence[Any], tile: Tile | None = None) -> Tensor:
    """Return the output for the operator's arguments but the precision; `tile`: as `choose` takes it."""
    from .triton_run import launches

    out, found = prepare(*arguments)
    for launch in launches(found, arguments, capability_of(out.device), tile):
        launch.run()
    for to, source in found.copies:
        to.copy_(source)
    return out


def prepare(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    scale: Sequence[int],
    first_chunk: bool,
    temporal_mode: str,
    spatial_mode: str,
) -> tuple[Tensor, UpsamplePlan]:
    """Return the output, allocated, and the convolutions that write it."""
    out = memory.empty(
        (x.shape[0], weight.shape[0], *output_size(x.shape, scale, first_chunk)),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x, weight),
    )
    return out, plan(out, x, weight, initial_state, scale, first_chunk, temporal_mode)


def call_of(
    part: Part,
    kernel: Tensor,
    found: UpsamplePlan,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    scale: Sequence[int],
    first_chunk: bool,
    temporal_mode: str,
    spatial_mode: str,
) -> Call:
    """Return the call of one part.

    Args:
        part: What it computes.
        kernel: The folded weights of its phase, or the weights themselves.
        found: The plan that the part is of.
        x: As the operator takes it, and so are all others.
        weight: See there.
        bias: See there.
        initial_state: See there.
        scale: See there.
        first_chunk: See there.
        temporal_mode: See there.
        spatial_mode: See there.
    """
    fold = found.fold
    window = tuple(weight.shape[2:]) if fold is None else fold.window
    return Call(
        x,
        kernel,
        None if bias is None else bias.contiguous(),
        initial_state if found.causal else None,
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
        temporal_mode,
        spatial_mode,
    )


UPSAMPLE = Backend("triton", _convolve, why_not, moves=moves_by_phase)
