"""What torch's allocator hands out and takes back while a piece of code runs on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def cpu_allocations(work: Callable[[], object]) -> list[int]:
    """Run `work` under `torch.profiler`; return the signed bytes of its allocations and releases, in turn.

    The time of such a run means nothing. Two runs cannot be inside of each other, nor inside of a profiler of
    somebody else's (`is_profiling`).
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet_kineto(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    # The aggregated statistics of the profiler keep only what each operator has left over; the peak needs the
    # single events, and these are in the raw results alone.
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return [e.nbytes() for e in events if e.device_type() == torch.autograd.DeviceType.CPU]


def is_profiling() -> bool:
    """Tell whether a profiler is on in this thread."""
    return torch._C._autograd._profiler_enabled()


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
