"""`bench`: ours beside diffusers' own modules on this machine, parity first, as a table, a record, a plot."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ..bench.floors import GPUS
from ..bench.machine import device_words
from ..bench.plot import plot_record
from ..bench.providers import CONV_REFERENCES, conv_call, conv_providers, pad_providers
from ..bench.record import Row, conv_row, geometric_mean, make_record, pad_row, write_record
from ..bench.roofline import Limits, measure_limits
from ..bench.threads import num_threads
from ..bench.timing import Timing, time_providers
from ..core.env import BACKEND
from ..core.errors import InvalidInput
from ..core.op import explain
from ..core.optional import require
from ..core.outputs import written_whole
from ..parity import ConvOracle, check_conv, check_pad
from ..workloads import FULL_SIZE, GATED, WORKLOADS, Workload, in_buffer
from .bench_gpu import bench_gpu
from .common import check_file, check_least, check_threads, check_word, one_sentence_errors, parse_dtype
from .console import progress_bar, stdout
from .floors import print_floors

OPS = ("causal_conv3d", "causal_pad3d")
DEVICES = ("cpu", "cuda")


@one_sentence_errors
def bench(
    op: Annotated[str, typer.Option(help="causal_conv3d or causal_pad3d.")] = "causal_conv3d",
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as 128x128-9x60x90, or all; repeatable; default: the eight of the geometric mean."
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, bfloat16 or float16; repeatable; default: float32 and bfloat16."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; default: torch's choice.")] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds; each runs every provider once.")] = 5,
    backend: Annotated[str | None, typer.Option(help="Backend of our op; default: chosen per call.")] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compiled/--no-compiled", help="Also time diffusers' module under torch.compile."),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record here.")] = None,
    png_file: Annotated[Path | None, typer.Option("--png", help="Write a bar chart here.")] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: every backend on a GPU, workloads at full size.")
    ] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="With --device cuda: measure what --json does not hold yet.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Time nothing; print the roofline time of each workload on this GPU, such as h200."
        ),
    ] = None,
) -> None:
    """Time our ops against diffusers' modules, alternately, after checking parity of each."""
    check_word("--op", op, OPS)
    check_word("--backend", backend, BACKEND.choices)
    check_word("--model", model, tuple(GPUS))
    check_word("--device", device, DEVICES)
    check_least(("--rounds", rounds, 1))
    check_threads(threads)
    if model is not None:
        return print_floors(op, model, _chosen(op, workload or ["all"], FULL_SIZE))
    gpu = device == "cuda"
    workloads = _chosen(op, workload or (["all"] if gpu else list(GATED)), FULL_SIZE if gpu else WORKLOADS)
    default_dtypes = ("bfloat16",) if gpu else ("float32", "bfloat16")
    dtypes = [parse_dtype(word) for word in dict.fromkeys(dtype or default_dtypes)]
    for option, path in (("--json", json_file), ("--png", png_file)):
        check_file(option, path)
    if op == "causal_conv3d":
        require("diffusers", "bench")
    if png_file is not None:
        require("matplotlib", "the bar chart")
    if gpu:
        files = {"json_file": json_file, "png_file": png_file, "resume": resume}
        return bench_gpu(op, workloads, dtypes, rounds=rounds, compiled=compiled, **files)

    seed = random.SystemRandom().randrange(2**31)
    with num_threads(threads):
        with progress_bar() as bar:
            task = bar.add_task("the machine's limits", total=None)
            limits = measure_limits(torch.get_num_threads())
            run = _Run(rounds, backend, compiled, seed, limits, bar)
            jobs = [(w, d) for d in dtypes for w in workloads]
            rows = []
            for done, job in enumerate(jobs):
                bar.update(task, description=_words(*job), completed=done, total=len(jobs))
                rows.append(run.conv(*job) if op == "causal_conv3d" else run.pad(*job))
        record = make_record(rows, {torch.get_num_threads(): limits})
        if png_file is not None:
            with written_whole(png_file) as temporary:
                plot_record(temporary, record)
        if json_file is not None:
            write_record(json_file, record)
        _print(rows, limits, seed)


def _chosen(op: str, names: list[str], known: Mapping[str, Workload]) -> list[Workload]:
    for name in names:
        if name != "all" and name not in known:
            raise InvalidInput(f"--workload: got {name!r}, expected all or one of {', '.join(known)}")
    every = "all" in names
    chosen = [known[name] for name in (known if every else dict.fromkeys(names))]
    if op == "causal_conv3d":
        return chosen
    for workload in chosen:
        if workload.kernel_size[0] == 1 and not every:
            raise InvalidInput(
                f"--workload: got {workload.name!r}, whose kernel of one frame needs no padding in time; "
                "expected one whose kernel has more"
            )
    return [workload for workload in chosen if workload.kernel_size[0] > 1]


@dataclass(frozen=True)
class _Run:
    """What all measurements of one command share."""

    rounds: int
    backend: str | None
    compiled: bool
    seed: int
    limits: Limits
    bar: Progress

    def conv(self, workload: Workload, dtype: torch.dtype) -> Row:
        """Measure a convolution."""
        call = conv_call(workload, dtype, self.seed)
        with torch.no_grad():
            chosen = explain("causal_conv3d", **call, backend=self.backend).chosen
        providers = conv_providers(call, backend=self.backend, compiled=self.compiled)
        oracle = ConvOracle(call, backend=self.backend)
        errors = check_conv(oracle, providers, CONV_REFERENCES, _words(workload, dtype))
        return conv_row(workload, dtype, self._time(providers), errors, **self._facts(chosen))

    def pad(self, workload: Workload, dtype: torch.dtype) -> Row:
        """Measure the padding of a convolution's input."""
        x, frames = conv_call(workload, dtype, self.seed)["x"], workload.kernel_size[0] - 1
        chosen = explain("causal_pad3d_", in_buffer(x, frames), backend=self.backend).chosen
        providers = pad_providers(x, frames, backend=self.backend)
        check_pad(providers, frames, _words(workload, dtype))
        return pad_row(workload, dtype, self._time(providers), **self._facts(chosen))

    def _facts(self, chosen: str | None) -> dict[str, Any]:
        return {"threads": torch.get_num_threads(), "backend": chosen, "limits": self.limits}

    def _time(self, providers: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        task = self.bar.add_task("", total=(self.rounds + 1) * len(providers))
        timings = time_providers(
            providers,
            repeats=self.rounds,
            warmup=1,
            progress=lambda name: self.bar.update(task, advance=1, description=name),
        )
        self.bar.remove_task(task)
        return timings


def _words(workload: Workload, dtype: torch.dtype) -> str:
    return f"{workload.name} {str(dtype).removeprefix('torch.')}"


def _print(rows: list[Row], limits: Limits, seed: int) -> None:
    pairs = [(mine, other) for mine, others in rows[0]["speedup_p50"].items() for other in others]
    console = stdout()
    console.print(_table(rows))
    for mine, other in pairs:
        mean = geometric_mean(row["speedup_p50"][mine][other] for row in rows)
        console.print(f"{mine} against {other}: [bold]{mean:.2f}×[/], geometric mean of {len(rows)}")
    if "bytes_ratio" in rows[0]:
        mean = geometric_mean(row["bytes_ratio"] for row in rows)
        console.print(f"bytes that torch.cat moves against ours: {mean:.2f}×, geometric mean")
        console.print("parity: equal bits")
    else:
        worst = max(p["relative_error"] for row in rows for p in row["providers"].values())
        console.print(f"parity holds for all; largest relative error against float64: {worst:.1e}")
    fma = limits["fma_gflops"]
    rate = "not measured without the native module" if fma is None else f"{fma:,.0f} GFLOP/s in float32"
    console.print(
        f"{escape(device_words(torch.device('cpu')))}; backend of ours: "
        f"{', '.join(dict.fromkeys(row['backend'] for row in rows))}; multiply-adds at most: {rate}; "
        f"copies at most: {limits['copy_gbps']:.1f} GB/s; inputs of seed {seed}",
        soft_wrap=True,
    )


def _table(rows: list[Row]) -> Table:
    """Return the medians, and the speedups of ours against the unmodified module in the same layout."""
    names = list(dict.fromkeys(name for row in rows for name in row["providers"]))
    pairs = list(zip(rows[0]["speedup_p50"], names, strict=False))
    table = Table(title="median milliseconds; speedup of ours", title_justify="left", title_style="bold")
    for heading in ("workload", "dtype"):
        table.add_column(heading, no_wrap=True)
    for heading in (*names, *(mine.replace("ours", "speedup") for mine, _ in pairs)):
        table.add_column(heading.replace("channels_last_3d", "channels last"), justify="right")
    for row in rows:
        times = (f"{row['providers'][name]['p50_ms']:,.2f}" for name in names)
        factors = (f"{row['speedup_p50'][mine][other]:.2f}×" for mine, other in pairs)
        table.add_row(row["workload"], row["dtype"], *times, *factors)
    return table
