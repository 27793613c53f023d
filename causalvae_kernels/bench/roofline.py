"""What this machine can do at most, measured: multiply-adds per second and bytes per second."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..core import native
from .threads import num_threads as use_threads
from .timing import percentile, time_once

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


# A product of matrices that fills the chip, and a tensor many times its cache.
_MATRIX = 8192
_GPU_COPY_BYTES = 2**32
_GPU_REPEATS = 10


def gpu_limits(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Limits:
    """Return both limits of a GPU: the rate of its matrix units on random numbers, and of a copy.

    Args:
        device: The GPU.
        dtype: Of the matrices; on zeros the product would run faster.
    """
    a, b = (torch.randn(_MATRIX, _MATRIX, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.empty(_GPU_COPY_BYTES // 4, device=device, dtype=torch.float32).normal_()
    target = torch.empty_like(source)
    work = {"product": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)}
    medians = {}
    for name, fn in work.items():
        times = [time_once(fn, device) for _ in range(2 + _GPU_REPEATS)][2:]
        medians[name] = percentile(times, 50)
    return {
        "fma_gflops": 2 * _MATRIX**3 / medians["product"] / 1e6,
        "copy_gbps": 2 * _GPU_COPY_BYTES / medians["copy"] / 1e6,
    }


def flush_cache(device: torch.device) -> Callable[[], object] | None:
    """Return a call that leaves nothing of earlier tensors in a GPU's L2: it writes twice as much.

    On a CPU, where what was just written is what the next op reads, there is none.
    """
    if device.type != "cuda":
        return None
    size = torch.cuda.get_device_properties(device).L2_cache_size
    scratch = torch.empty(2 * size, device=device, dtype=torch.uint8)
    return scratch.zero_
