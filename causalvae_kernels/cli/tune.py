"""`tune`: measures our convolution against the framework's and writes what `auto` goes by."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
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
from ..core import native, own_measurements
from ..core.errors import InvalidInput
from ..core.tuned import Measurement, Record, has_amx
from ..ops.causal_conv3d.measurements import TUNED
from .common import DTYPES, EXIT_FAILED, check_word, one_sentence_errors, parse_dtype
from .console import progress_bar, stderr, stdout
from .tune_races import gpu, tune_races
from .tune_store import check_store, open_store, say_where

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
            help="A file to write, such as the package's ops/<op>/tuned/<isa>.json; default: this user's "
            "cache."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Measure only what is not there yet.")] = False,
    missing: Annotated[
        bool,
        typer.Option(
            "--missing",
            help="Like --resume, and skip what the package's files already answer here.",
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
            "that device; with --kernel or --output, the convolution."
        ),
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove all measurements of this user, and measure nothing.")
    ] = False,
) -> None:
    """Measure where our kernels are faster than the framework's; `auto` uses them only there.

    What is measured goes into the cache of this user, for this machine, number of threads and version of the
    kernels; models that are loaded afterwards go by it. A run that was interrupted has lost nothing, and
    --resume goes on from there. With --output it goes into a file such as the package brings; with --dtype or
    --kernel, what that holds of others stays.
    """
    if clear:
        stdout().print(f"{own_measurements.clear()} measurements removed from {own_measurements.folder()}")
        return None
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
    check_store(output)
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
    head = Record(BACKEND, DEFAULT, isa, has_amx(), _machine(), ())
    chosen = {(d, k) for d in dtypes for k in kernels}
    everything = len(chosen) == len(DTYPES) * len(KERNELS)
    store = open_store(
        CONV,
        output,
        head,
        resume,
        None if everything else lambda m: tuple(m.shape_class.split(" ", 2)[:2]) in chosen,
    )
    known = {m.shape_class for m in store.kept}
    if missing:
        known |= {cell.shape_class for cell in grid if TUNED.answers(isa, cell.shape_class)}
    todo = [cell for cell in grid if cell.shape_class not in known]
    measured, wrong = _measure(todo, isa, seconds, store.save)
    _print((*store.kept, *measured))
    say_where(store, len(measured))
    for sentence in wrong:
        stderr().print(f"[bold red]not recorded:[/] {escape(sentence)}", soft_wrap=True)
    if wrong:
        raise typer.Exit(EXIT_FAILED)


def _machine() -> dict[str, Any]:
    date = datetime.datetime.now(datetime.timezone.utc).date()
    return {**machine_facts(), "threads": torch.get_num_threads(), "date": date.isoformat()}


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
