"""What this machine can do at most, measured: multiply-adds per second and bytes per second."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..core import native
from .threads import num_threads as use_threads
from .timing import time_once

# Larger than the caches of today's servers, so that a copy comes from memory.
_COPY_BYTES = 2**28
_REPEATS = 5

Limits = Mapping[str, float | None]


def fma_limit(num_threads: int, *, milliseconds: int = 100) -> float | None:
    """Rate of float32 multiply-adds that stay in registers: what no direct convolution exceeds.

    Two things do: an algorithm with fewer multiplications, whose rate is counted in those of the direct form,
    and bfloat16 on processors that multiply it faster than float32.

    Args:
        num_threads: Threads that multiply at the same time.
        milliseconds: Length of each of the runs, of which the fastest counts.

    Returns:
        GFLOP/s, a multiply-add counted as two; None where the native CPU module cannot be used.
    """
    if native.why_no_cpu() is not None:
        return None
    measure, isa = native.cpu_module().fma_rate, native.cpu_isa()
    return max(measure(isa, num_threads, milliseconds) for _ in range(_REPEATS))


def copy_bandwidth(num_threads: int, *, num_bytes: int = _COPY_BYTES) -> float:
    """Rate at which a tensor is copied into memory that is there already.

    Args:
        num_threads: torch's number of threads meanwhile.
        num_bytes: Size of the tensor; as much again is allocated for the copy.

    Returns:
        GB/s (10^9 bytes), bytes read and bytes written both counted; the best of several copies.
    """
    source = torch.ones(num_bytes // 4)
    target = torch.zeros_like(source)
    with use_threads(num_threads):
        fastest = min(time_once(lambda: target.copy_(source)) for _ in range(_REPEATS))
    return 2 * source.numel() * 4 / fastest / 1e6


def measure_limits(num_threads: int) -> Limits:
    """Return both limits as a record holds them: `fma_gflops` and `copy_gbps`."""
    return {"fma_gflops": fma_limit(num_threads), "copy_gbps": copy_bandwidth(num_threads)}
