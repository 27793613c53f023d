"""Peak memory of a piece of code, counted in bytes of allocated tensors."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from ..core.allocations import cpu_allocations
from ..core.memory import release_kept


def peak_allocated(fn: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Peak of the bytes of tensors allocated while `fn` runs, over those that live when it starts.

    Memory that swapped models keep from call to call is given back first, and so counts.

    On CUDA this is what the caching allocator handed out (``torch.cuda.max_memory_allocated``). On a CPU
    the call runs under ``torch.profiler`` and the signed sizes of its allocations and releases are summed;
    the time of that run means nothing, so measure time in another one.

    What the CPU figure does not see: memory that does not come from torch's allocator (scratch and packed
    weights inside oneDNN and other native libraries, numpy arrays, the kernels' stacks), allocations in
    threads that `fn` starts itself, and the release of tensors that are older than the call: one that is
    released and replaced counts with its replacement. On CUDA, cuDNN's workspaces come from torch's
    allocator and count.

    Args:
        fn: What is measured. Its result is dropped at the end of the call.
        device: Whose memory is counted.

    Returns:
        Bytes, at least 0.
    """
    device = torch.device(device)
    release_kept()
    gc.collect()
    if device.type == "cuda":
        return _peak_on_cuda(fn, device)
    return _peak_on_cpu(fn)


def _peak_on_cuda(fn: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    fn()
    torch.cuda.synchronize(device)
    return max(torch.cuda.max_memory_allocated(device) - before, 0)


def _peak_on_cpu(fn: Callable[[], object]) -> int:
    live = peak = 0
    for size in cpu_allocations(fn):
        live += size
        peak = max(peak, live)
    return peak
