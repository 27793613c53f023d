"""A schedule as a table and as a picture: what runs, where, on how much, and where everything lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .schedule import Planned, Schedule
from .steps import CallStep, CopyStep, KeepStep, OpStep


@dataclass(frozen=True)
class Row:
    """A step.

    Attributes:
        number: In the order in which they run.
        path: Of the module that it stands for.
        what: The op and its backend; or that a module is called, something copied or kept.
        shape: (B, C, T, H, W) of what it makes.
        gflop: Of the direct form, a multiply-add counted as two.
        moved: Bytes that must be read and written.
        place: First and last byte in the arena of what it makes; None: it lies in memory of its own.
    """

    number: int
    path: str
    what: str
    shape: tuple[int, ...]
    gflop: float
    moved: int
    place: tuple[int, int] | None


@dataclass(frozen=True)
class Pass:
    """A run through an encoder or decoder.

    Attributes:
        name: Of the coder, and of the chunk.
        runs: How often it is run like this.
        schedule: What runs.
    """

    name: str
    runs: int
    schedule: Schedule

    @property
    def rows(self) -> list[Row]:
        """The steps."""
        return [self._row(n, planned) for n, planned in enumerate(self.schedule.planned)]

    def _row(self, number: int, planned: Planned) -> Row:
        step, work = planned.step, planned.work
        made = step.reads[0] if isinstance(step, KeepStep) else step.result
        shape = made.shape
        if isinstance(step, (OpStep, CopyStep)) and step.part is not None:
            shape = (*shape[:2], step.part[1], *shape[3:])
        place = None if isinstance(step, KeepStep) else self.schedule.places.get(made.index)
        span = None
        if place is not None:
            reach = sum((n - 1) * s for n, s in zip(place.shape, place.strides, strict=True)) + 1
            span = place.offset, place.offset + reach * made.dtype.itemsize
        gflop, moved = (0.0, 0) if work is None else (work.flops / 1e9, work.bytes)
        return Row(number, step.path, _what(planned), shape, gflop, moved, span)

    def __str__(self) -> str:
        """Return a table."""
        rows = self.rows
        total = f"{sum(r.gflop for r in rows):.2f} GFLOP, {_mb(sum(r.moved for r in rows))} MB moved"
        times = "once" if self.runs == 1 else f"{self.runs} times"
        head = f"{self.name}, {times}: {len(rows)} steps, {total}, arena of {_mb(self.schedule.size)} MB"
        cells = [("", "module", "runs", "makes (B, C, T, H, W)", "GFLOP", "MB", "arena, MB")]
        for row in rows:
            where = "" if row.place is None else f"{_mb(row.place[0])} to {_mb(row.place[1])}"
            shape = "x".join(map(str, row.shape))
            numbers = (f"{row.gflop:.2f}", _mb(row.moved)) if row.moved else ("", "")
            cells.append((str(row.number), row.path, row.what, shape, *numbers, where))
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        return "\n".join([head, *lines])


@dataclass(frozen=True)
class Shown:
    """How a swapped model runs a clip.

    Attributes:
        title: The model, the step and the clip.
        passes: The runs through its coder that differ, in the order in which they come first.
    """

    title: str
    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        """Return a table of each pass."""
        return "\n\n".join([self.title, *map(str, self.passes)])

    def draw(self, path: str | Path) -> Path:
        """Draw the memory of each pass over its steps, coloured by what fills it; return the path.

        Args:
            path: Of the picture; its ending says which kind.

        Raises:
            ImportError: There is no matplotlib.
        """
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        path = Path(path)
        figure, axes = plt.subplots(len(self.passes), 1, figsize=(11, 3.2 * len(self.passes)), squeeze=False)
        for axis, shown in zip(axes[:, 0], self.passes, strict=True):
            _draw_pass(axis, shown)
        figure.suptitle(self.title)
        figure.tight_layout()
        partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        figure.savefig(partial, dpi=110)
        plt.close(figure)
        return partial.replace(path)


_COLOURS = {
    "causal_conv3d": "tab:blue",
    "upsample_conv": "tab:cyan",
    "downsample_conv": "tab:cyan",
    "group_norm": "tab:orange",
    "spatial_norm": "tab:orange",
    "rms_norm": "tab:orange",
    "calls": "tab:red",
    "copies": "tab:gray",
}


def _draw_pass(axis: Any, shown: Pass) -> None:
    planned = shown.schedule.planned
    last: dict[int, int] = {}
    for number, step in enumerate(p.step for p in planned):
        for value in step.reads:
            last[value.index] = number
    seen = set()
    for row, step in zip(shown.rows, (p.step for p in planned), strict=True):
        if row.place is None or isinstance(step, KeepStep):
            continue
        begin, end = row.place
        kind = row.what.split()[0]
        width = max(last.get(step.result.index, row.number) - row.number, 0) + 1
        axis.broken_barh(
            [(row.number, width)],
            (begin / 1e6, (end - begin) / 1e6),
            facecolors=_COLOURS.get(kind, "tab:gray"),
            edgecolor="white",
            linewidth=0.4,
            label=None if kind in seen else kind,
        )
        seen.add(kind)
    axis.set(
        xlabel="step", ylabel="arena, MB", xlim=(0, len(planned)), ylim=(0, shown.schedule.size / 1e6 or 1)
    )
    axis.set_title(f"{shown.name} ({shown.runs} times)" if shown.runs > 1 else shown.name, fontsize=9)
    axis.legend(fontsize=7, loc="upper left")


def _what(planned: Planned) -> str:
    step = planned.step
    if isinstance(step, OpStep):
        return f"{step.op.name} {planned.backend}"
    if isinstance(step, CallStep):
        return "calls the module"
    return "keeps a state" if isinstance(step, KeepStep) else "copies"


def _mb(size: int) -> str:
    digits = 2 if size < 1e7 else 1
    return f"{size / 1e6:.{digits}f}"
