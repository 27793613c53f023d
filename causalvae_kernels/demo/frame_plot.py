"""The plot of a frame study: error per frame for 16 and 13 frames, and the worst frame for every number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.optional import require
from .frame_study import ANY, PAD, SHIPPED, TRIM, FrameStudy

_COLOURS = {SHIPPED: "#d1495b", PAD: "#edae49", TRIM: "#9aa5b1", ANY: "#00798c"}
_LINES = ("#222222", "#d1495b", "#8d96a3", "#c77dff", "#b08968", "#00798c", "#4f9d69", "#3d5a98")


def plot_study(
    path: str | Path,
    study: FrameStudy,
    paddings: dict[int, dict[str, list[float]]],
    adapted: dict[int, dict[str, list[float]]],
    title: str,
) -> None:
    """Write the plot as a PNG file.

    Args:
        path: The file.
        study: For the panel over all numbers.
        paddings: Number of frames to the lines of `study_padding`.
        adapted: Number of frames to lines: as shipped, adapted, real frames.
        title: Of the figure.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "the plot").Figure(figsize=(13, 8.5), dpi=120, layout="constrained")
    grid = figure.add_gridspec(2, max(len(paddings) + len(adapted), 1))
    panels = [*((n, lines, _LINES) for n, lines in paddings.items())]
    panels += [(n, lines, ("#222222", _COLOURS[SHIPPED], _COLOURS[ANY])) for n, lines in adapted.items()]
    for column, (n, lines, colours) in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        for (label, values), colour in zip(lines.items(), colours, strict=False):
            axes.plot(values, label=label, color=colour, linewidth=1.6, marker="o", markersize=3)
        axes.set_title(f"{n} frames: error of each frame", fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=8)
        _finish(axes, "frame")
    axes = figure.add_subplot(grid[1, :])
    axes.plot(
        study.counts,
        [study.best[n].worst for n in study.counts],
        color="#222222",
        label="the next real frames",
    )
    for treatment, colour in _COLOURS.items():
        found = [n for n in study.counts if (n, treatment) in study.runs]
        worst = [study.runs[n, treatment].worst for n in found]
        axes.plot(found, worst, color=colour, linewidth=1.4, marker="o", markersize=3, label=treatment)
    axes.set_title("the worst frame, for every number of frames", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8)
    _finish(axes, "frames in")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    figure.savefig(Path(path), format="png", metadata={"Title": title})


def _finish(axes: Any, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylabel("MSE, pixels in [0, 1]")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
