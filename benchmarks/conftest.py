"""What the suites share: options, threads, the machine's limits, and the record that they leave.

`--record FILE` writes the rows of the convolution and padding suites in the shape of `bench.record`, when
every test has passed; pytest-benchmark's own JSON, of any suite, gets the facts of the machine and no name.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from causalvae_kernels.bench.machine import machine_facts
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.bench.record import Row, make_record, write_record
from causalvae_kernels.bench.roofline import Limits, measure_limits
from causalvae_kernels.bench.threads import num_threads
from causalvae_kernels.bench.timing import Timing, percentile, time_once

ROWS = pytest.StashKey[list[Row]]()
_limits_of = functools.cache(measure_limits)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("causalvae_kernels")
    group.addoption("--record", type=Path, help="write the rows of the suites to this file")
    group.addoption(
        "--compiled",
        choices=("none", "some", "all"),
        default="some",
        help="for which convolutions torch.compile of diffusers' module is timed as well",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the record, unless something failed: half a record is none."""
    path, rows = session.config.getoption("--record"), session.config.stash[ROWS]
    if path is not None and rows and exitstatus == 0:
        write_record(path, make_record(rows, {row["threads"]: _limits_of(row["threads"]) for row in rows}))


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Replace the host's name and library paths by processor, versions and threads."""
    machine_info.clear()
    machine_info.update(machine_facts())
    machine_info["threads"] = torch.get_num_threads()
    machine_info["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS")


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep percentiles and drop the single samples."""
    output_json.pop("commit_info", None)
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)
        for name in ("param", "params", "options"):
            entry.pop(name, None)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run with this many threads of torch."""
    with num_threads(request.param):
        yield request.param


@pytest.fixture
def limits(threads: int) -> Limits:
    """What the machine can do with this many threads; measured once."""
    return _limits_of(threads)


@pytest.fixture
def keep(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[Row], None]:
    """Put a row into the record, and beside pytest-benchmark's figures."""

    def add(row: Row) -> None:
        request.config.stash[ROWS].append(row)
        benchmark.extra_info.update(row)

    return add


@pytest.fixture
def time_beside(benchmark: Any) -> Callable[..., dict[str, Timing]]:
    """Benchmark one provider; before each of its rounds time the others, forwards and backwards in turn."""

    def measure(
        providers: dict[str, Callable[[], object]], benchmarked: str, rounds: int
    ) -> dict[str, Timing]:
        samples: dict[str, list[float]] = {name: [] for name in providers}
        others = [name for name in providers if name != benchmarked]

        def run(name: str) -> None:
            samples[name].append(time_once(providers[name]))

        def run_the_others() -> None:
            for name in others:
                run(name)
            others.reverse()

        benchmark.pedantic(lambda: run(benchmarked), setup=run_the_others, rounds=rounds, warmup_rounds=1)
        return {name: Timing(name, tuple(found[1:] or found)) for name, found in samples.items()}

    return measure


@pytest.fixture
def race_models(benchmark: Any) -> Callable[[Callable[[], object], Callable[[], object], int], None]:
    """Benchmark a swapped model, the unmodified one before each of its rounds; count the memory of both."""

    def race(reference: Callable[[], object], swapped: Callable[[], object], rounds: int) -> None:
        sides: dict[str, list[float]] = {"reference": [], "swapped": []}
        benchmark.pedantic(
            lambda: sides["swapped"].append(time_once(swapped)),
            setup=lambda: sides["reference"].append(time_once(reference)),
            rounds=rounds,
            warmup_rounds=1,
        )
        sides = {side: samples[1:] for side, samples in sides.items()}
        for side, call in (("reference", reference), ("swapped", swapped)):
            for percent in (20, 50, 80):
                benchmark.extra_info[f"{side}_p{percent}_ms"] = round(percentile(sides[side], percent), 3)
            benchmark.extra_info[f"{side}_peak_mib"] = round(peak_allocated(call) / 2**20, 1)
        ratios = [a / b for a, b in zip(*sides.values(), strict=True)]
        benchmark.extra_info["speedup_p50"] = round(percentile(ratios, 50), 3)

    return race
