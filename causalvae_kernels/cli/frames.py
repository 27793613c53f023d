"""`frames`: every number of frames through a VAE, as shipped, padded, trimmed, adapted; table and plot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

from ..bench.machine import device_words, versions
from ..bench.threads import num_threads
from ..core.env import BACKEND
from ..core.errors import InvalidInput
from ..core.optional import require
from ..core.outputs import check_outputs, staged_outputs
from ..core.selection import requested_backend
from ..data.video import probe, read_frames
from ..demo.clip import resolve_clip
from ..demo.frame_plot import plot_study
from ..demo.frame_study import (
    ANY,
    SHIPPED,
    TREATMENTS,
    FrameStudy,
    Run,
    frames_needed,
    study_dict,
    study_frames,
    study_padding,
)
from ..demo.report import finite_or_null
from ..demo.vae import named_vae, spatial_factor
from ..models.loading import vae_folder
from ..temporal import frame_rule
from .common import check_least, check_threads, check_word, one_sentence_errors, parse_ints
from .console import progress_bar, stdout
from .reconstruct import check_size

PLOT, TABLE, REPORT = "frames.png", "frames.md", "frames.json"
OUTPUTS = (PLOT, TABLE, REPORT)

# The numbers of the plot's upper panels: one short of a valid one, and 4N+1 with an even number of latents.
PADDED, EVEN = 16, 13


@one_sentence_errors
def frames(
    clip: Annotated[str, typer.Argument(help="A video file, or bikes, carphone or bigbuckbunny.")],
    counts: Annotated[str, typer.Option(help="Numbers of frames: 1-33, or 13,16,17.")] = "1-33",
    start: Annotated[int, typer.Option(help="Index of the first frame.")] = 0,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT: crop the centre and resize; default: unchanged.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A diffusers folder with an AutoencoderKLCogVideoX; default: the small trained VAE."
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Backend of the swapped ops; default: chosen per call.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; default: torch's choice.")] = None,
    output: Annotated[Path, typer.Option(help=f"Folder for {', '.join(OUTPUTS)}.")] = Path("frames"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace these files where they exist.")
    ] = False,
) -> None:
    """Send clips of many lengths through a VAE and compare ways of handling each frame count."""
    numbers = parse_counts(counts)
    check_word("--backend", backend, BACKEND.choices)
    wanted_size = None if size is None else parse_ints("--size", size, 2, "x", "320x176")
    check_least(("--start", start, 0))
    check_threads(threads)
    check_outputs(output, OUTPUTS, overwrite)
    path = resolve_clip(clip)
    if weights is not None:
        vae_folder(weights)
    for module in ("av", "numpy", "matplotlib", "diffusers"):
        require(module, "frames")
    info = probe(path)
    vae, model = named_vae(weights)
    check_size(wanted_size, (info.width, info.height), spatial_factor(vae))
    needed = frames_needed(frame_rule(vae), numbers)
    pixels, _ = read_frames(path, needed, start, wanted_size)
    title = f"{path.name} from frame {start}, {pixels.shape[2]}×{pixels.shape[1]}; {model}"
    with num_threads(threads), progress_bar() as bar:
        used = torch.get_num_threads()
        task = bar.add_task("starting", total=None)
        study = study_frames(
            vae,
            pixels,
            numbers,
            backend=backend,
            progress=lambda word, done, total: bar.update(
                task, description=word, completed=done, total=total
            ),
        )
        bar.update(task, description="paddings")
        paddings = {n: study_padding(vae, pixels, n, backend=backend) for n in (PADDED,) if n in numbers}
        adapted = {n: _three_lines(study, n) for n in (EVEN,) if n in numbers}
    with staged_outputs(output, OUTPUTS, overwrite) as paths:
        plot_study(paths[PLOT], study, paddings, adapted, title)
        paths[TABLE].write_text("\n".join(markdown(study)) + "\n", encoding="utf-8")
        report = {
            "clip": path.name,
            "start": start,
            "size": list(pixels.shape[1:3]),
            "model": model,
            "backend": requested_backend(backend)[0],
            "threads": used,
            "device": device_words(torch.device("cpu")),
            "versions": versions(),
        }
        report |= {"paddings": paddings, **study_dict(study)}
        paths[REPORT].write_text(json.dumps(finite_or_null(report), indent=1) + "\n", encoding="utf-8")
    console = stdout()
    console.print(f"[bold]{escape(title)}[/]", soft_wrap=True)
    console.print(_table(study))
    for line in _fill_words(study):
        console.print(line, soft_wrap=True)
    console.print("written: " + ", ".join(escape(str(output / name)) for name in OUTPUTS), soft_wrap=True)


def parse_counts(text: str) -> list[int]:
    """Turn "1-33" or "13,16,17" into ascending numbers.

    Raises:
        InvalidInput: It is something else.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(first) < 1:
            raise InvalidInput(f"--counts: got {text!r}, expected positive numbers like 1-33 or 13,16,17")
        numbers.update(range(int(first), int(last or first) + 1))
    if not numbers:
        raise InvalidInput(f"--counts: got {text!r}, an empty range")
    return sorted(numbers)


def _three_lines(study: FrameStudy, n: int) -> dict[str, list[float]]:
    shipped, adapted = study.runs[n, SHIPPED], study.runs[n, ANY]
    return {
        "real frames up to the next valid number": study.best[n].mse,
        f"as shipped ({shipped.num_out} frames come back, the last {len(shipped.mse)} compared)": shipped.mse,
        f"adapted ({adapted.num_out} frames come back)": adapted.mse,
    }


LEGEND = "frames back / latents, mean and worst MSE of a frame ×10⁻³ (pixels in [0, 1]), seconds"
HEADINGS = ("frames", *TREATMENTS, "the next real frames")


def _rows(study: FrameStudy) -> Iterator[tuple[str, ...]]:
    """Return a row per number of frames, with a cell per treatment."""
    for n in study.counts:
        runs = (study.runs.get((n, treatment)) for treatment in TREATMENTS)
        yield (str(n), *("refused" if run is None else _cell(run) for run in runs), _cell(study.best[n]))


def _cell(run: Run) -> str:
    return (
        f"{run.num_out}/{run.num_latents}  {run.mean * 1e3:.3g} {run.worst * 1e3:.3g}  {run.ms / 1e3:.2f} s"
    )


def markdown(study: FrameStudy) -> list[str]:
    """Return the lines of the Markdown table."""
    lines = [f"{LEGEND}.", "", "| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(study)]
    return [*lines, "", *_fill_words(study)]


def _table(study: FrameStudy) -> Table:
    table = Table(title=LEGEND, title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for row in _rows(study):
        table.add_row(*row)
    return table


def _fill_words(study: FrameStudy) -> list[str]:
    if not study.fills:
        return []
    figures = ", ".join(f"{fill} {a * 1e3:.3f} / {b * 1e3:.3f}" for fill, (a, b) in study.fills.items())
    return [
        "MSE ×10⁻³ by what is added at the end (any), of the frames that share their latent with it / of all "
        f"frames: {figures}"
    ]
