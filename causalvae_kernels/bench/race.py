"""A race of our ways to do one thing against the default: checked, timed shortly, the best one at length.

A way is a backend, and for one that has a choice, a plan of how its kernel is cut. Whatever the op, each
way's result is held against the default's; all that agree are timed shortly; the best one is then timed in
alternation with the default, the caches cold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import in_a_line
from ..core.op import explain
from ..core.tuned import Measurement, architecture_of
from .roofline import flush_cache
from .timing import percentile, time_once, time_providers

_SHORT, _ROUNDS = 3, 15


@dataclass(frozen=True)
class Way:
    """One way to compute something.

    Attributes:
        backend: Its name.
        run: Computes it, and returns what is looked at.
        plan: How its kernel is cut, as a record holds it; None for one that has no choice.
    """

    backend: str
    run: Callable[[], Tensor]
    plan: dict[str, Any] | None = None

    @property
    def words(self) -> str:
        """The backend and its plan, for people."""
        plan = "" if self.plan is None else " " + " ".join(f"{k}={v}" for k, v in self.plan.items())
        return f"{self.backend}{plan}"


def usable(
    backends: Sequence[str], op: Callable[..., Any] | str, *arguments: Any, **keywords: Any
) -> list[str]:
    """Return those of these backends that can run a call of an op."""
    return [b for b in backends if explain(op, *arguments, **keywords, backend=b).chosen == b]


def _nothing() -> None:
    """Spoil nothing: every run gives a fresh tensor."""


@dataclass(frozen=True)
class Race:
    """The tensors are made, and all can start.

    Attributes:
        shapes: What is computed, for people: "1x128x8x480x720 -> 1x128x10x480x720".
        default: What `auto` does when nothing is known.
        ways: Those of ours that can do it.
        tolerance: The largest difference from the default, relative, over the norm; 0 asks for equal bits. It
            keeps a wrong kernel from being timed; `verify` applies the tolerance rule.
        spoil: Called before a run whose result is looked at: overwrites what a run in place must write.
    """

    shapes: str
    default: Way
    ways: Sequence[Way]
    tolerance: float
    spoil: Callable[[], object] = _nothing


@dataclass(frozen=True)
class Job:
    """A race whose tensors are made when its turn comes: each may fill a good part of a GPU.

    Attributes:
        name: For people.
        shape_class: The class that its measurement will speak for.
        prepare: Makes the race on a device.
    """

    name: str
    shape_class: str
    prepare: Callable[[torch.device], Race]


@torch.no_grad()
def run_race(
    job: Job, device: torch.device, progress: Callable[[str], None]
) -> tuple[Measurement | None, list[str]]:
    """Find the fastest way of ours, and time it beside the default.

    Args:
        job: What to measure.
        device: Where it runs.
        progress: Called with a few words before each way.

    Returns:
        The measurement of the best way, None if none of ours gives the result; a sentence for each that was
        not timed because it failed or its result is wrong.
    """
    try:
        race = job.prepare(device)
        flush = flush_cache(device)
        race.spoil()
        expected = race.default.run().clone()
    except Exception as error:  # out of memory, say: there are other jobs
        return None, [f"{job.name} cannot be measured: {in_a_line(error)}"]
    times: dict[int, float] = {}
    wrong = []
    for number, way in enumerate(race.ways):
        progress(f"{job.name} {way.words}")
        try:
            race.spoil()
            difference = _difference(way.run(), expected)
        except Exception as error:  # whatever it is, the other ways are worth their time
            wrong.append(f"{way.words} fails for {job.name}: {in_a_line(error)}")
            continue
        if not difference <= race.tolerance:
            wrong.append(
                f"{way.words} differs from {race.default.backend} by {difference:.2g} for {job.name}"
            )
            continue
        samples = [time_once(way.run, device, flush) for _ in range(_SHORT)]
        times[number] = percentile(samples, 50)
    if not times:
        return None, wrong or [f"no backend of ours can run {job.name}"]
    best = race.ways[min(times, key=times.__getitem__)]
    names = {race.default.backend: race.default.run, best.backend: best.run}
    timings = time_providers(names, repeats=_ROUNDS, warmup=2, device=device, before=flush)
    measurement = Measurement(
        shape_class=job.shape_class,
        shapes=race.shapes,
        ms=timings[best.backend].p50_ms,
        default_ms=timings[race.default.backend].p50_ms,
        rounds=_ROUNDS,
        backend=best.backend,
        default=race.default.backend,
        isa=architecture_of(device),
        plan=best.plan,
    )
    return measurement, wrong


def _difference(got: Tensor, expected: Tensor) -> float:
    if torch.equal(got, expected):
        return 0.0
    got, expected = got.float(), expected.float()
    return ((got - expected).norm() / expected.norm()).item()
