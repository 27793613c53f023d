"""`tune --device cuda`: measures our convolutions on this GPU and writes `tuned/<architecture>.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from ..bench.tune_gpu import BACKEND, DEFAULT, class_of, measure
from ..core.errors import BackendUnavailable, InvalidInput
from ..core.tuned import Measurement, Record, gpu_architecture, read_record
from ..demo.outputs import check_outputs, written_whole
from ..ops.causal_conv3d.shape_class import TUNED
from ..workloads import FULL_SIZE
from .common import EXIT_FAILED, progress_bar, stderr, stdout


def tune_gpu(
    dtypes: Sequence[torch.dtype], *, output: Path | None, resume: bool, machine: dict[str, Any]
) -> None:
    """Measure every workload at full size in every dtype; the file is replaced at the end.

    Args:
        dtypes: What to measure in.
        output: The file; default: the package's own.
        resume: Keep what the file, or a run that was stopped, holds.
        machine: What the record says of this machine.

    Raises:
        BackendUnavailable: torch sees no GPU.
        InvalidInput: The file to complete is of another GPU.
        typer.Exit: A kernel gives a wrong result; it is named, and not in the file.
    """
    device = _gpu()
    isa = gpu_architecture(device)
    path = output or TUNED.path(isa)
    check_outputs(path.parent, [path.name], overwrite=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    head = Record(BACKEND, DEFAULT, isa, False, machine, ())
    found = _kept(partial if partial.exists() else path, head) if resume else []
    known = {m.shape_class for m in found}
    todo = [(w, d) for d in dtypes for w in FULL_SIZE.values() if class_of(w, d) not in known]
    wrong: list[str] = []
    with progress_bar() as bar:
        task = bar.add_task("starting", total=len(todo))
        for done, (workload, dtype) in enumerate(todo):
            measurement, _, failed = measure(
                workload,
                dtype,
                device,
                lambda words, done=done: bar.update(task, description=words, completed=done),
            )
            found.append(measurement)
            wrong += failed
            with written_whole(partial) as temporary:
                temporary.write_text(replace(head, measurements=tuple(found)).text(), encoding="utf-8")
    if partial.exists():
        os.replace(partial, path)
    _print(found)
    stdout().print(f"{len(todo)} measured now, {len(found)} in {escape(str(path))}", soft_wrap=True)
    for sentence in wrong:
        stderr().print(f"[bold red]not recorded:[/] {escape(sentence)}", soft_wrap=True)
    if wrong:
        raise typer.Exit(EXIT_FAILED)


def _gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise BackendUnavailable("tune --device cuda: torch sees no GPU here")
    return torch.device("cuda", torch.cuda.current_device())


def _kept(path: Path, head: Record) -> list[Measurement]:
    if not path.exists():
        return []
    record = read_record(path)
    before, now = (
        (r.machine.get("gpus"), r.machine.get("versions", {}).get("torch")) for r in (record, head)
    )
    if before != now:
        raise InvalidInput(
            f"{path} was measured with {before}, and here it is {now}: write another file with --output, or "
            "measure everything, without --resume"
        )
    return list(record.measurements)


def _print(measurements: Sequence[Measurement]) -> None:
    table = Table(title=f"the best of ours beside {DEFAULT}", title_justify="left", title_style="bold")
    for heading in ("class", "backend", "plan"):
        table.add_column(heading)
    for heading in ("ms", f"{DEFAULT}, ms", "times as fast"):
        table.add_column(heading, justify="right")
    for m in measurements:
        plan = "" if m.plan is None else " ".join(str(value) for value in m.plan.values())
        ratio = f"[bold green]{m.ratio:.2f}[/]" if m.faster else f"{m.ratio:.2f}"
        table.add_row(m.shape_class, m.backend, plan, f"{m.ms:.3f}", f"{m.default_ms:.3f}", ratio)
    stdout().print(table)
