"""The races of `tune`: our kernels against `aten`, into `ops/<op>/tuned/<isa or architecture>.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from ..bench.race import Job, run_race
from ..bench.tunable import BACKEND, DEFAULT, TUNABLE
from ..core.errors import BackendUnavailable
from ..core.tuned import Measurement, Record, architecture_of, has_amx
from .common import EXIT_FAILED
from .console import progress_bar, stderr, stdout
from .tune_store import open_store, say_where


def tune_races(
    device: torch.device,
    ops: Sequence[str],
    dtypes: Sequence[torch.dtype],
    *,
    output: Path | None,
    everything: bool,
    resume: bool,
    missing: bool,
    machine: dict[str, Any],
) -> None:
    """Measure every op in every dtype; a file that is named is replaced when its op is done.

    Args:
        device: Where; `gpu` gives a GPU.
        ops: Names in `TUNABLE` for that kind of device.
        dtypes: What to measure in.
        output: The file, for one op; default: the user's cache.
        everything: These are all dtypes; else what the files hold of others stays.
        resume: Keep what is there.
        missing: Leave out the classes that the package's measurements of other machines answer here.
        machine: What the records say of this machine.

    Raises:
        InvalidInput: A file to complete is of another machine.
        typer.Exit: A kernel gives a wrong result; it is named, and not in the file.
    """
    wrong = []
    for op in ops:
        tunable, architecture = TUNABLE[device.type][op], architecture_of(device)
        jobs = tunable.jobs(dtypes)
        if missing:
            jobs = [job for job in jobs if not tunable.tuned.answers(architecture, job.shape_class)]
        wrong += _tune(op, jobs, device, output, resume, everything, machine)
    for sentence in wrong:
        stderr().print(f"[bold red]not recorded:[/] {escape(sentence)}", soft_wrap=True)
    if wrong:
        raise typer.Exit(EXIT_FAILED)


def _tune(
    op: str,
    jobs: Sequence[Job],
    device: torch.device,
    output: Path | None,
    resume: bool,
    everything: bool,
    machine: dict[str, Any],
) -> list[str]:
    """Measure one op; return a sentence for each result that is wrong."""
    amx = device.type == "cpu" and has_amx()
    head = Record(BACKEND[device.type], DEFAULT, architecture_of(device), amx, machine, ())
    classes = {job.shape_class for job in jobs}
    store = open_store(op, output, head, resume, None if everything else lambda m: m.shape_class in classes)
    known = {m.shape_class for m in store.kept}
    todo = [job for job in jobs if job.shape_class not in known]
    measured: list[Measurement] = []
    wrong: list[str] = []
    with progress_bar() as bar:
        task = bar.add_task("starting", total=len(todo))
        for done, job in enumerate(todo):
            measurement, failed = run_race(
                job, device, lambda words, done=done: bar.update(task, description=words, completed=done)
            )
            wrong += failed
            if measurement is not None:
                measured.append(measurement)
            store.save(measured)
    _print(op, (*store.kept, *measured))
    say_where(store, len(measured))
    return wrong


def gpu() -> torch.device:
    """Return the GPU.

    Raises:
        BackendUnavailable: torch sees none.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable("tune --device cuda: torch sees no GPU here")
    return torch.device("cuda", torch.cuda.current_device())


def _print(op: str, measurements: Sequence[Measurement]) -> None:
    table = Table(title=f"{op}: the best of ours beside {DEFAULT}", title_justify="left", title_style="bold")
    for heading in ("class", "backend", "plan"):
        table.add_column(heading)
    for heading in ("ms", f"{DEFAULT}, ms", "times as fast"):
        table.add_column(heading, justify="right")
    for m in measurements:
        plan = "" if m.plan is None else " ".join(str(value) for value in m.plan.values())
        ratio = f"[bold green]{m.ratio:.2f}[/]" if m.faster else f"{m.ratio:.2f}"
        table.add_row(m.shape_class, m.backend, plan, f"{m.ms:.3f}", f"{m.default_ms:.3f}", ratio)
    stdout().print(table)
