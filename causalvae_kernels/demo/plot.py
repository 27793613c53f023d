"""The plot of a reconstruction: error per frame, difference per frame, time and memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..core.optional import require
from .reconstruction import SIDES, Reconstruction
from .report import Setting

_COLOURS = {"reference": "#9aa5b1", "swapped": "#d1495b"}
_DIFFERENCE_COLOUR = "#00798c"
_ADAPTED_COLOUR = "#4f9d69"


def plot_frames(path: str | Path, result: Reconstruction, setting: Setting) -> None:
    """Writes the plot as a PNG file.

    Raises:
        MissingPackage: If matplotlib is not installed.
    """
    require("matplotlib", "the plot")
    # The figure is made without pyplot: no global state, no window, whatever backend the user has set.
    figure_module = require("matplotlib.figure", "the plot")
    figure = figure_module.Figure(figsize=(12, 7.2), dpi=130, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(2.6, 1))
    _plot_error(figure.add_subplot(grid[0, 0]), result)
    _plot_difference(figure.add_subplot(grid[1, 0]), result)
    _plot_times(figure.add_subplot(grid[0, 1]), result)
    _plot_memory(figure.add_subplot(grid[1, 1]), result)
    figure.suptitle(title(result, setting), fontsize=12, x=0.01, ha="left")
    if setting.note:
        figure.supxlabel(setting.note, fontsize=10, style="italic", color="#a33", x=0.01, ha="left")
    figure.savefig(Path(path), format="png", metadata={"Title": title(result, setting)})


def plot_stream(path: str | Path, mse: list[float], setting: Setting) -> None:
    """Writes the error per frame of a streamed reconstruction as a PNG file.

    Raises:
        MissingPackage: If matplotlib is not installed.
    """
    require("matplotlib", "the plot")
    figure = require("matplotlib.figure", "the plot").Figure(figsize=(12, 4), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(len(mse)), mse, color=_COLOURS["swapped"], linewidth=1.2, marker="o", markersize=2)
    axes.set_ylim(0, 1.2 * max((value for value in mse if math.isfinite(value)), default=0) or 1)
    axes.set_xlabel("frame")
    axes.set_ylabel("MSE per frame, pixels in [0, 1]")
    _frames_axis(axes, len(mse))
    heading = describe(len(mse), setting)
    figure.suptitle(heading, fontsize=12, x=0.01, ha="left")
    if setting.note:
        figure.supxlabel(setting.note, fontsize=10, style="italic", color="#a33", x=0.01, ha="left")
    figure.savefig(Path(path), format="png", metadata={"Title": heading})


def title(result: Reconstruction, setting: Setting) -> str:
    """Two lines: what was run, and on what."""
    return describe(result.num_frames, setting)


def describe(num_frames: int, setting: Setting) -> str:
    """Two lines: what was run, and on what."""
    return (
        f"{setting.clip}: {num_frames} frames of {setting.width}×{setting.height}, {setting.dtype}\n"
        f"{setting.model}; {setting.device}; backend {setting.backend}, precision {setting.precision}"
    )


def _frames_axis(axes: Any, count: int) -> None:
    axes.set_xlim(-0.5, count - 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _plot_error(axes: Any, result: Reconstruction) -> None:
    frames = range(len(result.clip))
    reference, swapped = (result.sides[side].mse for side in SIDES)
    axes.plot(frames, reference, color=_COLOURS["reference"], linewidth=6, alpha=0.6, label="reference")
    axes.plot(
        frames, swapped, color=_COLOURS["swapped"], linewidth=1.4, marker="o", markersize=4, label="swapped"
    )
    adapted = (result.adapted or [])[-len(result.clip) :]
    if adapted:
        label = 'swapped, frames="any"'
        axes.plot(
            frames, adapted, color=_ADAPTED_COLOUR, linewidth=1.4, marker="o", markersize=4, label=label
        )
    highest = max((value for value in reference + swapped + adapted if math.isfinite(value)), default=0)
    axes.set_ylim(0, 1.2 * highest or 1)
    axes.set_title(
        "error against the clip: one line on the other means equal quality", fontsize=10, loc="left"
    )
    axes.set_ylabel("MSE per frame, pixels in [0, 1]")
    axes.legend(frameon=False, loc="lower right")
    _frames_axis(axes, len(result.clip))


def _plot_difference(axes: Any, result: Reconstruction) -> None:
    axes.set_title("largest |swapped − reference|", fontsize=10, loc="left")
    axes.set_xlabel("frame")
    axes.set_ylabel("of a frame's pixels in [0, 1]")
    _frames_axis(axes, len(result.clip))
    positive = [(index, value) for index, value in enumerate(result.difference) if value > 0]
    if not positive:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none: equal bit for bit", transform=axes.transAxes, ha="center", fontsize=13)
        return
    axes.set_yscale("log")
    # One step of 8-bit video gives the eye a measure for these small numbers.
    axes.axhline(1 / 255, color="black", linewidth=0.8, linestyle=":")
    axes.annotate(
        "one step of 8-bit video", (0.0, 1 / 255), xytext=(2, 3), textcoords="offset points", fontsize=8
    )
    axes.plot(*zip(*positive, strict=True), color=_DIFFERENCE_COLOUR, linewidth=1.4, marker="o", markersize=4)
    low, high = min(value for _, value in positive), max(value for _, value in positive)
    axes.set_ylim(low / 5, max(high * 5, 1 / 50))
    equal = [index for index, value in enumerate(result.difference) if value == 0]
    if equal:
        axes.plot(equal, [low / 4] * len(equal), "v", color=_DIFFERENCE_COLOUR, label="equal bit for bit")
        axes.legend(frameon=False)


def _plot_times(axes: Any, result: Reconstruction) -> None:
    values = {
        side: [result.sides[side].encode.p50_ms / 1e3, result.sides[side].decode.p50_ms / 1e3]
        for side in SIDES
    }
    _bars(axes, ["encode", "decode"], values, "seconds, median")
    axes.set_title("time", fontsize=10, loc="left")


def _plot_memory(axes: Any, result: Reconstruction) -> None:
    values = {side: [result.sides[side].peak_bytes / 2**20] for side in SIDES}
    _bars(axes, ["encode and decode"], values, "MiB of tensors")
    axes.set_title("peak memory", fontsize=10, loc="left")


def _bars(axes: Any, groups: list[str], values: dict[str, list[float]], label: str) -> None:
    width = 0.38
    for offset, side in zip((-width / 2, width / 2), SIDES, strict=True):
        places = [index + offset for index in range(len(groups))]
        bars = axes.bar(places, values[side], width * 0.94, color=_COLOURS[side], label=side)
        axes.bar_label(bars, fmt="%.3g", fontsize=9, padding=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(label)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
