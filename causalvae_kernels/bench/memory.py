"""Peak memory of a piece of code, counted in bytes of allocated tensors."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def peak_allocated(fn: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Peak of the bytes of tensors allocated while `fn` runs, over those that live when it starts.

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
    gc.collect()
    if device.type == "cuda":
        return _peak_on_cuda(fn, device)
    return _peak_on_cpu(fn)


def available(device: torch.device | str = "cpu") -> int | None:
    """Bytes that could be allocated now without swapping; None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name == "MemAvailable":
                    return int(value.split()[0]) * 1024
    except OSError:
        pass  # not Linux
    return None


def _peak_on_cuda(fn: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    fn()
    torch.cuda.synchronize(device)
    return max(torch.cuda.max_memory_allocated(device) - before, 0)


def _peak_on_cpu(fn: Callable[[], object]) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet_kineto(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        fn()
    # The aggregated statistics of the profiler keep only what each operator has left over; the peak needs the
    # single events, and these are in the raw results alone.
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    live = peak = 0
    for event in events:
        if event.device_type() != torch.autograd.DeviceType.CPU:
            continue
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextmanager
def _quiet_kineto() -> Iterator[None]:
    """Keeps the profiler's library from writing log lines to stderr; it reads this when it starts."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "6")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
