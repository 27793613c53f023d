"""`tune`: measures our convolution against the framework's and writes what `auto` goes by."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from ..bench.machine import machine_facts
from ..bench.timing import percentile
from ..bench.tunable import TUNABLE
from ..bench.tune import BACKEND, DEFAULT, check_comparable
from ..bench.tune import tune as tune_cells
from ..bench.tune_cells import KERNELS, Cell, cells
from ..core import native
from ..core.errors import InvalidInput
from ..core.outputs import check_outputs, written_whole
from ..core.tuned import Measurement, Record, architecture_of, has_amx, read_record
from ..ops.causal_conv3d.measurements import TUNED
from .common import DTYPES, EXIT_FAILED, check_word, one_sentence_errors, parse_dtype
from .console import progress_bar, stderr, stdout
from .tune_races import gpu, tune_races

CONV = "causal_conv3d"
OPS = tuple(sorted({CONV, *TUNABLE["cpu"], *TUNABLE["cuda"]}))


@one_sentence_errors
def tune(
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, bfloat16 or float16; repeatable; default: all."),
    ] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(KERNELS[:-1])} or {KERNELS[-1]}; repeatable; default: all."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The file to write; default: tuned/<isa>.json in the package; for convolutions on "
            "processors with AMX <isa>-amx.json."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Measure only what the file does not hold yet.")
    ] = False,
    missing: Annotated[
        bool,
        typer.Option(
            "--missing",
            help="Like --resume, and skip what other files of the package already answer here.",
        ),
    ] = False,
    max_gflop: Annotated[
        float,
        typer.Option(help="Skip convolutions with more work than this, in GFLOP."),
    ] = 16.0,
    seconds: Annotated[
        float, typer.Option(help="Seconds of timed rounds per convolution; at least three rounds run.")
    ] = 0.3,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: Triton's tiles and CUDA C++ at full size, on this GPU.")
    ] = "cpu",
    op: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(OPS[:-1])} or {OPS[-1]}; repeatable; default: all that are measured on "
            "that device; with --kernel or --output, the convolution. Each op has its own file."
        ),
    ] = None,
) -> None:
    """Measure where our kernels are faster than the framework's; `auto` uses them only there.

    On a CPU times count for the instruction set in use and for this number of threads. With --dtype or
    --kernel, what a file holds of others stays. A file is replaced at the end of its op;
    what an interrupted run has measured is in <file>.partial, and --resume goes on from there.
    """
    dtypes, kernels = tuple(dict.fromkeys(dtype or DTYPES)), tuple(dict.fromkeys(kernel or KERNELS))
    torch_dtypes = [parse_dtype(word) for word in dtypes]
    check_word("--device", device, ("cpu", "cuda"))
    measured_here = tuple(TUNABLE[device]) if device == "cuda" else (CONV, *TUNABLE["cpu"])
    of_the_convolution = device == "cpu" and (kernel or output is not None)
    ops = tuple(dict.fromkeys(op or ((CONV,) if of_the_convolution else measured_here)))
    for word in ops:
        check_word("--op", word, measured_here)
    if output is not None and len(ops) > 1:
        raise InvalidInput(
            f"--output: got one file for {', '.join(ops)}, which have one each; name the op with --op"
        )
    architecture = architecture_of(torch.device(device))
    for name in ops:
        tuned = TUNED if (name, device) == (CONV, "cpu") else TUNABLE[device][name].tuned
        path = output or (tuned.path(architecture) if architecture else None)
        if path is not None:
            check_outputs(path.parent, [path.name], overwrite=True)
    resume = resume or missing
    races = {
        "output": output,
        "everything": not dtype,
        "resume": resume,
        "missing": missing,
        "machine": _machine(),
    }
    if device == "cuda":
        return tune_races(gpu(), ops, torch_dtypes if dtype else [torch.bfloat16, torch.float16], **races)
    for word in kernels:
        check_word("--kernel", word, KERNELS)
    for option, value in (("--max-gflop", max_gflop), ("--seconds", seconds)):
        if not value > 0:
            raise InvalidInput(f"{option}: got {value}, expected a number above 0")
    isa = native.cpu_isa()
    check_comparable(isa)
    grid = cells(torch_dtypes, kernels, max_gflop=max_gflop)
    if not grid:
        raise InvalidInput(f"--max-gflop: got {max_gflop}, expected at least 0.1")
    others = [name for name in ops if name != CONV]
    if others:
        tune_races(torch.device("cpu"), others, torch_dtypes, **races)
    if CONV not in ops:
        return None
    path = output or TUNED.path(isa)
    head = Record(BACKEND, DEFAULT, isa, has_amx(), _machine(), ())
    partial = path.with_name(f"{path.name}.partial")
    before = partial if resume and partial.exists() else path
    kept = _kept(before, head, resume, {(d, k) for d in dtypes for k in kernels})
    known = {m.shape_class for m in kept}
    if missing:
        known |= {cell.shape_class for cell in grid if TUNED.answers(isa, cell.shape_class)}
    todo = [cell for cell in grid if cell.shape_class not in known]
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(measured: Sequence[Measurement]) -> None:
        with written_whole(partial) as temporary:
            text = replace(head, measurements=(*kept, *measured)).text()
            temporary.write_text(text, encoding="utf-8")

    measured, wrong = _measure(todo, isa, seconds, save)
    if partial.exists():
        os.replace(partial, path)
    _print((*kept, *measured))
    stdout().print(
        f"{len(measured)} measured now, {len(kept) + len(measured)} in {escape(str(path))}", soft_wrap=True
    )
    for sentence in wrong:
        stderr().print(f"[bold red]not recorded:[/] {escape(sentence)}", soft_wrap=True)
    if wrong:
        raise typer.Exit(EXIT_FAILED)


def _machine() -> dict[str, Any]:
    date = datetime.datetime.now(datetime.timezone.utc).date()
    return {**machine_facts(), "threads": torch.get_num_threads(), "date": date.isoformat()}


def _kept(path: Path, head: Record, resume: bool, chosen: set[tuple[str, str]]) -> list[Measurement]:
    """Return what stays of the file: everything to resume, else what this run does not measure.

    Raises:
        BadMeasurements: The file cannot be read.
        InvalidInput: It comes from another machine, and its times cannot stand beside new ones.
    """
    everything = len(chosen) == len(DTYPES) * len(KERNELS)
    if not path.exists() or (everything and not resume):
        return []
    record = read_record(path)
    before, now = _where(record), _where(head)
    if before != now:
        raise InvalidInput(
            f"{path} was measured with {before}, and here it is {now}: write another file with --output, or "
            "measure everything, without --resume, --missing, --dtype and --kernel"
        )
    return [m for m in record.measurements if resume or tuple(m.shape_class.split(" ", 2)[:2]) not in chosen]


def _where(record: Record) -> str:
    """Return what must be equal for times to stand beside each other."""
    machine = record.machine
    torch_version = machine.get("versions", {}).get("torch")
    return (
        f"{machine.get('processor')}, {record.isa}, {machine.get('threads')} threads, torch {torch_version}"
    )


def _measure(
    todo: Sequence[Cell], isa: str, seconds: float, save: Callable[[Sequence[Measurement]], None]
) -> tuple[list[Measurement], list[str]]:
    with progress_bar() as bar:
        task = bar.add_task("starting", total=len(todo), completed=-1)

        def progress(shape_class: str) -> None:
            bar.update(task, advance=1, description=shape_class)

        return tune_cells(todo, isa=isa, seconds=seconds, save=save, progress=progress)


def _print(measurements: Sequence[Measurement]) -> None:
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        dtype, _, rest = m.shape_class.partition(" ")
        kernel = rest.partition("->")[0].rpartition(" ")[0]
        groups.setdefault((dtype, kernel), []).append(m)
    table = Table()
    for heading in ("dtype", "kernel"):
        table.add_column(heading)
    for heading in ("classes", f"{BACKEND} is taken", "median", "best"):
        table.add_column(heading, justify="right")
    for (dtype, kernel), found in groups.items():
        ratios = [m.ratio for m in found]
        faster = sum(m.faster for m in found)
        table.add_row(
            dtype,
            kernel,
            str(len(found)),
            str(faster),
            f"{percentile(ratios, 50):.2f}×",
            f"{max(ratios):.2f}×",
        )
    stdout().print(table)
