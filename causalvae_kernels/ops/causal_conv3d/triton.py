"""Causal convolution in Triton, on NVIDIA GPUs: reads input and state as two sources, copies neither.

docs/triton.md tells how it is done. Nothing here waits for the device or reads from it, so that calls can be
captured into a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.gpu_arch import capability_of
from ...core.op import Backend, always
from ...core.overlap import is_same_memory
from ...core.precision import why_not_exact
from ...core.traffic import into
from ...core.triton_runtime import why_no_triton
from ...core.tuned import Measurement
from .shape_class import measured
from .traffic import moves_with_packing
from .triton_call import make_call
from .triton_tiles import Tile, choose

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Pixels of a frame are counted in 32 bits.
_MAX_PIXELS = 2**30


def why_not(x: Tensor, *others: Any) -> str | None:
    """Return why the kernel cannot convolve `x`, or None; the precision tier is the last argument."""
    if x.dtype not in _DTYPES:
        return f"the kernel knows float32, bfloat16 and float16, not {x.dtype}"
    if x.shape[3] * x.shape[4] > _MAX_PIXELS:
        return f"a frame has {x.shape[3] * x.shape[4]} pixels, the kernel counts up to {_MAX_PIXELS}"
    return why_not_exact(others[-1], "convolution") or why_no_triton(x.device)


def _why_not_into(out: Tensor, *arguments: Any) -> str | None:
    residual = arguments[4]
    if residual is not None and is_same_memory(out, residual):
        return "the residual is the output itself, which Winograd's form over time may compute twice"
    return why_not(*arguments)


def _convolve(*arguments: Any, out: Tensor | None = None) -> Tensor:
    from .triton_run import run

    call = make_call(*arguments[:-1], out=out)
    run(call, choose(call, capability_of(call.x.device), tuned_tile(measured(*arguments))))
    return call.out


def _convolve_into(out: Tensor, *arguments: Any) -> None:
    _convolve(*arguments, out=out)


def tuned_tile(measurement: Measurement | None) -> Tile | None:
    """Return the tile that was measured to be the fastest for calls like this one on this GPU, or None."""
    if measurement is None or measurement.objection is not None or measurement.backend != "triton":
        return None
    return None if measurement.plan is None else Tile(**measurement.plan)


CONV = Backend("triton", _convolve, why_not, two_sources=always, moves=moves_with_packing)
CONV_ = Backend("triton", _convolve_into, _why_not_into, two_sources=always, moves=into(moves_with_packing))
