"""The record of a benchmark: one shape for the command line, the suites, the README's tables and the plot.

A record is `{"machine": ..., "limits": {threads: ...}, "rows": [...]}`. A row is one workload in one dtype
with one number of threads: every provider's percentiles, rate and error, and the speedups of ours.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..ops.causal_conv3d.spec import flops
from ..ops.causal_pad3d.spec import bytes_moved
from ..workloads import Workload
from .machine import machine_facts
from .providers import CONV_BASELINES, CONV_OURS, PAD_BASELINES, PAD_OURS
from .roofline import Limits
from .timing import Timing, percentile

Row = dict[str, Any]


def conv_row(
    workload: Workload,
    dtype: torch.dtype,
    timings: Mapping[str, Timing],
    errors: Mapping[str, float],
    *,
    threads: int,
    backend: str,
    limits: Limits,
    ours: Sequence[str] = CONV_OURS,
) -> Row:
    """Return the row of a convolution.

    Args:
        workload: The convolution.
        dtype: Of all tensors.
        timings: One per provider, their samples taken in the same rounds.
        errors: Relative error of each provider against float64.
        threads: torch's number of threads.
        backend: What ran ours.
        limits: What `measure_limits` gave for this number of threads, or `gpu_limits` for a GPU.
        ours: The providers that are ours.
    """
    work = flops(workload.shape, workload.weight_shape, workload.stride)
    providers = {}
    for name, timing in timings.items():
        rate = work / timing.p50_ms / 1e6
        providers[name] = {
            **timing.as_dict(),
            "gflops": rate,
            "percent_of_limit": _percent(rate, limits["fma_gflops"]),
            "relative_error": errors[name],
        }
    row = _row("causal_conv3d", workload.name, dtype, threads, backend, providers)
    row["flops"] = work
    row["speedup_p50"] = _speedups(timings, ours, CONV_BASELINES)
    return row


def pad_row(
    workload: Workload,
    dtype: torch.dtype,
    timings: Mapping[str, Timing],
    *,
    threads: int,
    backend: str,
    limits: Limits,
    ours: Sequence[str] = PAD_OURS,
) -> Row:
    """Return the row of a padding; its arguments are those of `conv_row`.

    `ours` are the providers that work in place, and the first of all is the copy that they are held against.
    `bytes_ratio` is how many times the bytes of ours the copy moves: what `speedup_p50` is held against.
    """
    frames = workload.kernel_size[0] - 1
    providers = {}
    for name, timing in timings.items():
        moved = bytes_moved(workload.shape, frames, (0, 0, 0, 0), dtype.itemsize, in_place=name in ours)
        rate = moved / timing.p50_ms / 1e6
        providers[name] = {
            **timing.as_dict(),
            "bytes": moved,
            "gbps": rate,
            "percent_of_limit": _percent(rate, limits["copy_gbps"]),
        }
    row = _row("causal_pad3d", workload.name, dtype, threads, backend, providers)
    row["bytes_ratio"] = providers[PAD_BASELINES[0]]["bytes"] / providers[ours[0]]["bytes"]
    row["speedup_p50"] = _speedups(timings, [n for n in timings if n not in PAD_BASELINES], PAD_BASELINES)
    return row


def module_row(
    op: str,
    name: str,
    dtype: torch.dtype,
    timings: Mapping[str, Timing],
    errors: Mapping[str, float],
    moved: Mapping[str, int],
    *,
    threads: int,
    backend: str,
    limits: Limits,
) -> Row:
    """Return the row of a norm or an upsampler, whose bytes were counted.

    Args:
        op: Name of the op.
        name: Of the workload.
        dtype: Of all tensors.
        timings: One per provider, their samples taken in the same rounds; those of `CONV_BASELINES` are
            diffusers', the others ours.
        errors: Relative error of each provider against float64.
        moved: The bytes that each moves, as `count_traffic` has them.
        threads: torch's number of threads.
        backend: What ran ours.
        limits: What `measure_limits` gave for this number of threads.
    """
    providers = {}
    for provider, timing in timings.items():
        rate = moved[provider] / timing.p50_ms / 1e6
        providers[provider] = {
            **timing.as_dict(),
            "bytes": moved[provider],
            "gbps": rate,
            "percent_of_limit": _percent(rate, limits["copy_gbps"]),
            "relative_error": errors[provider],
        }
    row = _row(op, name, dtype, threads, backend, providers)
    ours = [provider for provider in timings if provider not in CONV_BASELINES]
    row["bytes_ratio"] = moved[CONV_BASELINES[0]] / min(moved[provider] for provider in ours)
    row["speedup_p50"] = _speedups(timings, ours, CONV_BASELINES)
    return row


def _row(
    op: str, name: str, dtype: torch.dtype, threads: int, backend: str, providers: dict[str, Any]
) -> Row:
    return {
        "op": op,
        "workload": name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "backend": backend,
        "providers": providers,
    }


def _percent(rate: float, limit: float | None) -> float | None:
    return 100 * rate / limit if limit else None


def _speedups(
    timings: Mapping[str, Timing], ours: Sequence[str], baselines: Sequence[str]
) -> dict[str, dict[str, float]]:
    return {
        mine: {name: speedup(timings[name], timings[mine]) for name in baselines if name in timings}
        for mine in ours
        if mine in timings
    }


def speedup(slow: Timing, fast: Timing) -> float:
    """Return the median over the rounds of how many times faster the second was than the first."""
    ratios = [a / b for a, b in zip(slow.samples_ms, fast.samples_ms, strict=True)]
    return percentile(ratios, 50)


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers, of which there must be one."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def most_threads(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the largest number of threads: what tables and plots show."""
    most = max((row["threads"] for row in rows), default=0)
    return [row for row in rows if row["threads"] == most]


def make_record(rows: Sequence[Row], limits: Mapping[int, Limits]) -> dict[str, Any]:
    """Return the record of these rows.

    Args:
        rows: What `conv_row` and `pad_row` gave.
        limits: For each number of threads in the rows, what `measure_limits` gave.
    """
    return {
        "machine": machine_facts(),
        "limits": {str(threads): dict(found) for threads, found in sorted(limits.items())},
        "rows": list(rows),
    }


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, numbers with five digits; the file is there whole, or as it was before."""
    write_json(path, _rounded(record))


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write plain data as JSON; the file is there whole, or as it was before."""
    temporary = path.with_name(f".partial-{path.name}")
    try:
        temporary.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rounded(value: Any) -> Any:
    """Keep five digits: times are no better, and records are read by people."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
