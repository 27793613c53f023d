"""Causal convolution in Triton, on NVIDIA GPUs: reads input and state as two sources, copies neither.

docs/design/triton.md tells how it is done. Nothing here waits for the device or reads from it, so that calls
can be captured into a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .....core.backend import Backend, always
from .....core.gpu_arch import capability_of
from .....core.overlap import is_same_memory
from .....core.precision import why_not_exact
from .....core.triton_runtime import why_no_triton
from .....core.tuned import Measurement
from ...measurements import measured
from ...spec import ConvArgs, moves_with_packing
from .call import make_call
from .tiles import Tile, choose

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Pixels of a frame are counted in 32 bits.
_MAX_PIXELS = 2**30


def why_not(args: Any, precision: str, out: Tensor | None = None) -> str | None:
    """Return why the kernel cannot take a call, whose `args.x` are the frames, or None."""
    x = args.x
    if x.dtype not in _DTYPES:
        return f"the kernel knows float32, bfloat16 and float16, not {x.dtype}"
    if x.shape[3] * x.shape[4] > _MAX_PIXELS:
        return f"a frame has {x.shape[3] * x.shape[4]} pixels, the kernel counts up to {_MAX_PIXELS}"
    return why_not_exact(precision, "convolution") or why_no_triton(x.device)


def _why_not(args: ConvArgs, precision: str, out: Tensor | None) -> str | None:
    if out is not None and args.residual is not None and is_same_memory(out, args.residual):
        return "the residual is the output itself, and the kernel was never checked for that"
    return why_not(args, precision)


def _convolve(out: Tensor, args: ConvArgs, precision: str) -> None:
    from .run import run

    call = make_call(args, out)
    run(call, choose(call, capability_of(out.device), tuned_tile(measured(args, precision, None))))


def tuned_tile(measurement: Measurement | None) -> Tile | None:
    """Return the tile that was measured to be the fastest for calls like this one on this GPU, or None."""
    if measurement is None or measurement.objection is not None or measurement.backend != "triton":
        return None
    return None if measurement.plan is None else Tile(**measurement.plan)


CONV = Backend("triton", _convolve, why_not=_why_not, two_sources=always, moves=moves_with_packing)
