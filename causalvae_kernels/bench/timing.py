"""Times of several providers of the same result, measured in alternation.

Machines drift (clock, temperature, neighbours), so providers that are measured one after the other are
measured on different machines. Here every round runs each provider once, and every second round runs them
backwards, so that a drift that is linear in time falls on all of them alike.
"""

from __future__ import annotations

import cProfile
import math
import pstats
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

# A millisecond at 2 GHz. Queueing a call takes Python up to a few tenths of one; the GPU writes 100 MB in
# 40 us, so that behind such a write alone the times of short kernels would be those of their launches.
_SLEEP_CYCLES = 2_000_000


@dataclass(frozen=True)
class Timing:
    """Times of one provider.

    Attributes:
        name: The provider.
        samples_ms: One time per round, in milliseconds, in the order in which they were measured.
    """

    name: str
    samples_ms: tuple[float, ...]

    @property
    def p20_ms(self) -> float:
        """20th percentile in milliseconds."""
        return percentile(self.samples_ms, 20)

    @property
    def p50_ms(self) -> float:
        """Median in milliseconds."""
        return percentile(self.samples_ms, 50)

    @property
    def p80_ms(self) -> float:
        """80th percentile in milliseconds."""
        return percentile(self.samples_ms, 80)

    def as_dict(self) -> dict[str, float | int]:
        """The percentiles and the number of samples, ready for JSON."""
        return {
            "p20_ms": self.p20_ms,
            "p50_ms": self.p50_ms,
            "p80_ms": self.p80_ms,
            "samples": len(self.samples_ms),
        }


def percentile(samples: Sequence[float], percent: float) -> float:
    """The percentile of a few samples, linear between neighbours (numpy's default rule).

    Args:
        samples: At least one number.
        percent: From 0 to 100.

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError("percentile: got no sample, expected at least one")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = math.ceil(position)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def python_calls(fn: Callable[[], object]) -> int:
    """Return how many functions a call runs, those written in C counted and `fn` itself not."""
    profile = cProfile.Profile()
    profile.enable()
    fn()
    profile.disable()
    return pstats.Stats(profile).total_calls - 2  # `fn`, and the end of the profile


def time_once(
    fn: Callable[[], object],
    device: torch.device | str = "cpu",
    before: Callable[[], object] | None = None,
) -> float:
    """Time of one call in milliseconds.

    On CUDA the time between two events on the current stream, all of it queued while the GPU sleeps, so that
    no kernel waits for its launch; elsewhere wall-clock time.

    Args:
        fn: What is timed. Its result is dropped.
        device: The device that does the work.
        before: Called first, its time not counted; on CUDA its work is queued before the first event, such
            as a write that leaves nothing of the inputs in the cache.
    """
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.synchronize()
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(_SLEEP_CYCLES)
            if before is not None:
                before()
            start.record()
            fn()
            end.record()
            end.synchronize()
            return start.elapsed_time(end)
    if before is not None:
        before()
    begin = time.perf_counter()
    fn()
    return (time.perf_counter() - begin) * 1e3


def time_providers(
    providers: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 10,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    before: Callable[[], object] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Times each provider `repeats` times, in alternation.

    Rounds 0, 2, 4, … run the providers in the given order, rounds 1, 3, 5, … in the opposite one.

    Args:
        providers: Name to callable without arguments.
        repeats: Timed rounds, at least 1.
        warmup: Rounds before that whose times are dropped, at least 0.
        device: The device that does the work.
        before: As `time_once` takes it.
        progress: Called with the provider's name after each call, warm-up included.

    Returns:
        One `Timing` per provider, in the given order.

    Raises:
        ValueError: If `repeats` or `warmup` is too small.
    """
    if repeats < 1:
        raise ValueError(f"time_providers: got repeats={repeats}, expected at least 1")
    if warmup < 0:
        raise ValueError(f"time_providers: got warmup={warmup}, expected at least 0")
    samples: dict[str, list[float]] = {name: [] for name in providers}
    forwards = list(providers)
    for round_index in range(-warmup, repeats):
        for name in forwards if round_index % 2 == 0 else reversed(forwards):
            elapsed = time_once(providers[name], device, before)
            if round_index >= 0:
                samples[name].append(elapsed)
            if progress is not None:
                progress(name)
    return {name: Timing(name, tuple(values)) for name, values in samples.items()}
