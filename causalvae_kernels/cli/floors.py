"""`bench --model GPU`: the least time of every workload on a GPU that need not be here, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..bench.floors import GPUS, Floor, conv_floor, pad_floor
from ..workloads import Workload
from .console import stdout


def print_floors(op: str, name: str, workloads: Sequence[Workload]) -> None:
    """Print a row per workload, bfloat16.

    Args:
        op: "causal_conv3d" or "causal_pad3d"; for the latter, both its forms.
        name: One of `GPUS`.
        workloads: Whose floors.
    """
    gpu = GPUS[name]
    table = Table(
        title=f"the least time on an {gpu.name} in bfloat16: {gpu.tflops:,.0f} TFLOP/s, {gpu.gbps:,.0f} GB/s",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("workload", no_wrap=True)
    for heading in ("TFLOP", "GB", "operations, ms", "bytes, ms", "floor, ms", "limit"):
        table.add_column(heading, justify="right")
    for workload in workloads:
        if op == "causal_conv3d":
            _add(table, workload.name, conv_floor(workload, gpu))
        else:
            _add(table, f"{workload.name} in place", pad_floor(workload, gpu, in_place=True))
            _add(table, f"{workload.name} copied", pad_floor(workload, gpu, in_place=False))
    console = stdout()
    console.print(table)
    console.print("Nothing was timed. The direct form is counted, and every tensor once.", soft_wrap=True)


def _add(table: Table, words: str, floor: Floor) -> None:
    numbers = (floor.flops / 1e12, floor.bytes / 1e9, floor.flops_ms, floor.bytes_ms, floor.ms)
    table.add_row(words, *(f"{number:,.3f}" for number in numbers), floor.limit)
