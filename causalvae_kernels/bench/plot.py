"""The plots of records: how many times faster than the first provider the others are; where time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine import machine_words
from .record import Row, most_threads
from .shares import GROUPS

_COLOURS = {
    "diffusers": "#9aa5b1",
    "torch.cat": "#9aa5b1",
    "diffusers channels_last_3d": "#5c677d",
    "diffusers torch.compile": "#edae49",
    "ours": "#d1495b",
    "ours channels_last_3d": "#00798c",
}

_GROUPS = dict(zip(GROUPS, ("#00798c", "#66a182", "#edae49", "#d1495b", "#8d96a3", "#d5d9de"), strict=True))


def plot_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write the bars of a record as a PNG file: a panel per dtype, those rows with the most threads.

    matplotlib must be installed.

    Args:
        path: The file.
        record: What `make_record` gave, its rows all of one op.
    """
    # The figure is made without pyplot: no global state, no window, whatever backend the user has set.
    from matplotlib.figure import Figure

    rows = most_threads(record["rows"])
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    workloads = max(sum(row["dtype"] == dtype for row in rows) for dtype in dtypes)
    size = (max(8.0, 1.4 * workloads + 2), 3.3 * len(dtypes) + 1)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    for index, dtype in enumerate(dtypes):
        axes = figure.add_subplot(len(dtypes), 1, index + 1)
        _panel(axes, [row for row in rows if row["dtype"] == dtype])
        axes.set_title(dtype, fontsize=10, loc="left")
    handles = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=8,
    )
    figure.suptitle(_title(record, rows[0]), fontsize=11, x=0.01, ha="left")
    figure.savefig(Path(path), format="png")


def _panel(axes: Any, rows: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["providers"]))
    width = 0.84 / len(names)
    for name in names:
        given = [(index, list(row["providers"]), row) for index, row in enumerate(rows)]
        given = [entry for entry in given if name in entry[1]]
        # A provider that a workload lacks leaves no gap.
        places = [index + (own.index(name) - (len(own) - 1) / 2) * width for index, own, _ in given]
        heights = [_times_the_first(row, name) for _, _, row in given]
        bars = axes.bar(places, heights, width * 0.94, color=_COLOURS.get(name), label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=6, padding=1)
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
    axes.set_xticks(range(len(rows)), [row["workload"] for row in rows], fontsize=8)
    axes.set_ylabel(f"times the speed of {names[0]}", fontsize=8)
    axes.margins(x=0.01, y=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _times_the_first(row: Row, name: str) -> float:
    providers = row["providers"]
    first = next(iter(providers))
    known = row["speedup_p50"].get(name, {}).get(first)
    return providers[first]["p50_ms"] / providers[name]["p50_ms"] if known is None else known


def _title(record: Mapping[str, Any], row: Row) -> str:
    return f"{row['op']}: {machine_words(record['machine'], row['threads'])}"


@dataclass(frozen=True)
class Stack:
    """Where the time of a model goes.

    Attributes:
        name: What ran.
        reference: Milliseconds by group of operators, as shipped.
        swapped: The same, swapped.
    """

    name: str
    reference: Mapping[str, float]
    swapped: Mapping[str, float]


def plot_shares(path: str | Path, stacks: Sequence[Stack], title: str) -> None:
    """Write a PNG file with two bars for each: the time as shipped is 1, and ours is what it takes of that.

    matplotlib must be installed.

    Args:
        path: The file.
        stacks: At least one; their groups are those of `shares.GROUPS`.
        title: Above the bars.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 1.6 + 0.62 * len(stacks)), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    places, labels = [], []
    for index, stack in enumerate(stacks):
        whole = sum(stack.reference.values())
        for offset, words, parts in ((-0.2, "diffusers", stack.reference), (0.2, "swapped", stack.swapped)):
            left = 0.0
            for group in GROUPS:
                share = parts[group] / whole
                label = group if not places else None
                axes.barh(index + offset, share, 0.36, left, color=_GROUPS[group], label=label)
                if share >= _LEAST_LABELLED:
                    where = (left + share / 2, index + offset)
                    axes.text(*where, f"{100 * share:.0f}", fontsize=6, ha="center", va="center")
                left += share
            places.append(index + offset)
            labels.append(f"{stack.name}, {words}")
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("of the time that diffusers takes; in the bars per cent", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.01)
    figure.legend(loc="outside lower center", ncols=len(GROUPS), frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.savefig(Path(path), format="png")


_LEAST_LABELLED = 0.03
