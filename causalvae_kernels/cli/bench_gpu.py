"""`bench --device cuda`: every backend beside diffusers' module on a GPU.

Parity comes first, providers alternate, the caches are cold, and a later run can complete the record.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import typer
from rich.markup import escape
from rich.table import Table

from ..bench.machine import device_words, gpus, versions
from ..bench.plot import plot_record
from ..bench.providers import GPU_REFERENCES, conv_call, gpu_conv_providers, gpu_pad_providers
from ..bench.record import Row, conv_row, make_record, pad_row, write_record
from ..bench.roofline import Limits, flush_cache, gpu_limits
from ..bench.timing import Timing, time_providers
from ..core.errors import BackendUnavailable, InvalidInput, in_a_line
from ..core.op import explain
from ..core.outputs import written_whole
from ..parity import ConvOracle, ParityFailure, check_conv, check_pad
from ..workloads import FULL_SIZE, Workload
from .common import EXIT_FAILED
from .console import progress_bar, stderr, stdout


def bench_gpu(
    op: str,
    workloads: Sequence[Workload],
    dtypes: Sequence[torch.dtype],
    *,
    rounds: int,
    compiled: bool,
    json_file: Path | None,
    png_file: Path | None,
    resume: bool,
) -> None:
    """Measure, print, write; the record is written after every row.

    Args:
        op: "causal_conv3d" or "causal_pad3d".
        workloads: Of `FULL_SIZE`.
        dtypes: Of all tensors.
        rounds: Timed rounds.
        compiled: With diffusers' module under torch.compile.
        json_file: The record.
        png_file: The bar chart, made when all is measured.
        resume: Keep the rows that `json_file` holds, and measure the others only.

    Raises:
        BackendUnavailable: torch sees no GPU.
        InvalidInput: The record to complete is of another machine.
        typer.Exit: A provider fails or gives another result; its workload is named, and not in the record.
    """
    device = _gpu()
    rows, limits = _begun(json_file) if resume else ([], None)
    wrong: list[str] = []
    with progress_bar() as bar:
        task = bar.add_task("the GPU's limits", total=None)
        limits = gpu_limits(device) if limits is None else limits
        known = {(row["op"], row["workload"], row["dtype"]) for row in rows}
        words = {dtype: str(dtype).removeprefix("torch.") for dtype in dtypes}
        jobs = [(w, d) for d in dtypes for w in workloads if (op, w.name, words[d]) not in known]
        suite = _Suite(device, limits, random.SystemRandom().randrange(2**31), rounds, compiled)
        for done, (workload, dtype) in enumerate(jobs):
            bar.update(task, description=f"{workload.name} {words[dtype]}", completed=done, total=len(jobs))
            measure = suite.conv if op == "causal_conv3d" else suite.pad
            try:
                torch.cuda.empty_cache()
                rows.append(measure(workload, dtype))
            except ParityFailure as error:
                wrong.append(str(error))
            except Exception as error:  # whatever it is, the other workloads are worth their time
                wrong.append(f"{workload.name} {words[dtype]}: {in_a_line(error)}")
            if json_file is not None:
                write_record(json_file, make_record(rows, {0: limits}))
    place = {name: number for number, name in enumerate(FULL_SIZE)}
    mine = [row for row in rows if row["op"] == op]
    mine.sort(key=lambda row: place.get(row["workload"], len(place)))
    if png_file is not None and mine:
        with written_whole(png_file) as temporary:
            plot_record(temporary, make_record(mine, {0: limits}))
    _print(op, mine, limits, device)
    for sentence in wrong:
        stderr().print(f"[bold red]wrong:[/] {escape(sentence)}", soft_wrap=True)
    if wrong:
        raise typer.Exit(EXIT_FAILED)


@dataclass(frozen=True)
class _Suite:
    """What all rows of a run share.

    Attributes:
        device: The GPU.
        limits: What `gpu_limits` gave.
        seed: Of the inputs.
        rounds: Timed rounds; each runs every provider once.
        compiled: With diffusers' module under torch.compile.
    """

    device: torch.device
    limits: Limits
    seed: int
    rounds: int
    compiled: bool

    def conv(self, workload: Workload, dtype: torch.dtype) -> Row:
        """Measure a convolution: diffusers' module in both layouts, then each backend in channels_last_3d.

        Raises:
            ParityFailure: A provider does not give the result; nothing was timed.
        """
        call = conv_call(workload, dtype, self.seed, self.device)
        with torch.no_grad():
            chosen = explain("causal_conv3d", **call).chosen
        providers = gpu_conv_providers(call, compiled=self.compiled)
        ours = tuple(name for name in GPU_REFERENCES if name in providers)
        errors = check_conv(ConvOracle(call), providers, GPU_REFERENCES, f"{workload.name} {dtype}")
        timings = self._time(providers)
        return conv_row(
            workload, dtype, timings, errors, threads=0, backend=chosen, limits=self.limits, ours=ours
        )

    def pad(self, workload: Workload, dtype: torch.dtype) -> Row:
        """Measure the padding of a convolution's input: `torch.cat`, then both forms of each backend.

        Raises:
            ParityFailure: A provider does not give the result; nothing was timed.
        """
        x, frames = conv_call(workload, dtype, self.seed, self.device)["x"], workload.kernel_size[0] - 1
        providers, in_place = gpu_pad_providers(x, frames)
        check_pad(providers, frames, f"{workload.name} {dtype}")
        chosen = explain("causal_pad3d", x, frames).chosen
        timings = self._time(providers)
        return pad_row(workload, dtype, timings, threads=0, backend=chosen, limits=self.limits, ours=in_place)

    def _time(self, providers: dict[str, Callable[[], object]]) -> dict[str, Timing]:
        return time_providers(
            providers,
            repeats=self.rounds,
            warmup=2,
            device=self.device,
            before=flush_cache(self.device),
        )


def _gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise BackendUnavailable("bench --device cuda: torch sees no GPU here; without one, --model h200")
    return torch.device("cuda", torch.cuda.current_device())


def _begun(path: Path | None) -> tuple[list[Row], Limits | None]:
    """Return the rows and limits of a record to complete."""
    if path is None or not path.exists():
        return [], None
    record = json.loads(path.read_text(encoding="utf-8"))
    for fact, here in (("gpus", gpus()), ("versions", versions())):
        if record["machine"].get(fact) != here:
            raise InvalidInput(
                f"--resume: {path} was measured with {fact} {record['machine'].get(fact)}, here are {here}: "
                "name another file"
            )
    return record["rows"], record["limits"]["0"]


def _print(op: str, rows: Sequence[Row], limits: Limits, device: torch.device) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["providers"]))
    table = Table(title="median milliseconds (of the limit)", title_justify="left", title_style="bold")
    for heading in ("workload", "dtype", *names):
        table.add_column(heading.replace("channels_last_3d", "channels last"), no_wrap=heading == "workload")
    for row in rows:
        cells = (_cell(row["providers"].get(name)) for name in names)
        table.add_row(row["workload"], row["dtype"], *cells)
    console = stdout()
    console.print(table)
    matrix, copy = limits["fma_gflops"] / 1e3, limits["copy_gbps"]
    limit = f"{matrix:,.0f} TFLOP/s" if op == "causal_conv3d" else f"{copy:,.0f} GB/s"
    console.print(
        f"{device_words(device)}, measured limit: {limit}; parity holds for what is shown", soft_wrap=True
    )


def _cell(provider: Row | None) -> str:
    if provider is None:
        return ""
    return f"{provider['p50_ms']:,.3f} ({provider['percent_of_limit']:.0f} %)"
