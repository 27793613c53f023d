"""`reconstruct`: a clip through the reference VAE and through the swapped one; a report, a plot, a video."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
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
from ..core.precision import TIERS, resolve_precision
from ..core.selection import requested_backend
from ..data.video import iter_frames, probe, read_frames, write_video
from ..demo.clip import resolve_clip
from ..demo.panels import side_by_side
from ..demo.plot import describe, plot_frames, plot_stream, title
from ..demo.reconstruction import Reconstruction, Side
from ..demo.reconstruction import reconstruct as reconstruct_clip
from ..demo.report import Setting, report_dict
from ..demo.streaming import StreamedReconstruction, streamed_pictures, streamed_report
from ..demo.vae import TRAINED_WEIGHTS_NOTE, named_vae, spatial_factor
from ..models.loading import vae_folder
from .common import (
    check_least,
    check_threads,
    check_word,
    default_device,
    one_sentence_errors,
    parse_device,
    parse_dtype,
    parse_ints,
)
from .console import progress_bar, stderr, stdout

VIDEO, PLOT, REPORT = "side_by_side.mp4", "frames.png", "report.json"
OUTPUTS = (VIDEO, PLOT, REPORT)


@one_sentence_errors
def reconstruct(
    clip: Annotated[str, typer.Argument(help="A video file, or bikes, carphone or bigbuckbunny.")],
    frames: Annotated[
        int | None,
        typer.Option(
            help="Number of frames; 1 and 8k+1 make the round trip. Default: 17; with --stream, all."
        ),
    ] = None,
    start: Annotated[int, typer.Option(help="Index of the first frame.")] = 0,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT: crop the centre and resize; default: unchanged.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default: the GPU if there is one.")
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
    precision: Annotated[str | None, typer.Option(help="exact or high.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed rounds; default: 3, or 1 for long work.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; default: torch's choice.")] = None,
    output: Annotated[Path, typer.Option(help=f"Folder for {', '.join(OUTPUTS)}.")] = Path("reconstruction"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace these files where they exist.")
    ] = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Run only the swapped VAE, chunk by chunk, in constant memory; any number of frames.",
        ),
    ] = False,
) -> None:
    """Reconstruct a clip with the unmodified VAE and with the swapped one, and compare the two."""
    torch_dtype, torch_device = parse_dtype(dtype), parse_device(device or default_device())
    wanted_size = None if size is None else parse_ints("--size", size, 2, "x", "320x176")
    check_word("--backend", backend, BACKEND.choices)
    check_word("--precision", precision, TIERS)
    check_least(("--frames", frames, 1), ("--start", start, 0), ("--repeats", repeats, 1))
    check_threads(threads)
    if stream and repeats is not None:
        raise InvalidInput("--repeats: got a number together with --stream, which times nothing")
    check_outputs(output, OUTPUTS, overwrite)
    path = resolve_clip(clip)
    if weights is not None:
        vae_folder(weights)
    for module in ("av", "numpy", "matplotlib", "PIL", "diffusers"):
        require(module, "reconstruct")
    info = probe(path)

    vae, model = named_vae(weights, torch_dtype)
    check_size(wanted_size, (info.width, info.height), spatial_factor(vae))
    width, height = wanted_size or (info.width, info.height)

    with num_threads(threads):
        setting = Setting(
            clip=path.name,
            start=start,
            width=width,
            height=height,
            fps=float(info.fps),
            model=model,
            note=TRAINED_WEIGHTS_NOTE if weights is None else "",
            dtype=dtype,
            device=device_words(torch_device),
            threads=torch.get_num_threads(),
            backend=requested_backend(backend)[0],
            precision=resolve_precision(precision),
            versions={name: version for name, version in versions().items() if version},
        )
        if stream:
            run = StreamedReconstruction(
                vae,
                iter_frames(path, frames, start, wanted_size),
                num_frames=frames,
                device=torch_device,
                backend=backend,
                precision=precision,
            )
            length = None if info.num_frames is None else info.num_frames - start
            _write_streamed(output, overwrite, run, setting, info.fps, frames or length)
            return
        pixels, fps = read_frames(path, 17 if frames is None else frames, start, wanted_size)
        with progress_bar() as bar:
            task = bar.add_task("starting", total=None)
            result = reconstruct_clip(
                vae,
                pixels,
                device=torch_device,
                backend=backend,
                precision=precision,
                repeats=repeats,
                progress=lambda phase, done, total: bar.update(
                    task, description=phase, completed=done, total=total
                ),
            )
            bar.update(task, description="writing the files")
            _write(output, overwrite, result, setting, fps)
    _print_result(result, setting, output)


def check_size(wanted: tuple[int, ...] | None, actual: tuple[int, int], factor: int) -> None:
    """Require a width and height that the VAE can halve often enough.

    Raises:
        InvalidInput: They are no multiples of `factor`; the message names the nearest ones that are.
    """
    width, height = wanted or actual
    if width % factor == 0 and height % factor == 0:
        return
    near = "x".join(
        str(_nearest(value, factor, limit)) for value, limit in zip((width, height), actual, strict=True)
    )
    whose = "--size: got" if wanted else "the clip's frames are"
    raise InvalidInput(
        f"{whose} {width}x{height}, expected multiples of {factor}; the nearest is --size {near}"
    )


def _nearest(value: int, factor: int, limit: int) -> int:
    """Return the nearest multiple; the one below where the one above would enlarge the clip."""
    below = value // factor * factor
    above = below + factor
    if below and (value - below <= above - value or above > limit):
        return below
    return max(below, above)


def _write(output: Path, overwrite: bool, result: Reconstruction, setting: Setting, fps: Fraction) -> None:
    with staged_outputs(output, OUTPUTS, overwrite) as paths:
        write_video(paths[VIDEO], side_by_side(result, setting.note), fps)
        plot_frames(paths[PLOT], result, setting)
        paths[REPORT].write_text(json.dumps(report_dict(result, setting), indent=2) + "\n", encoding="utf-8")


def _write_streamed(
    output: Path,
    overwrite: bool,
    run: StreamedReconstruction,
    setting: Setting,
    fps: Fraction,
    total: int | None,
) -> None:
    """Send the clip through, write the files, and print what came out."""
    with progress_bar() as bar, staged_outputs(output, OUTPUTS, overwrite) as paths:
        pictures = bar.track(streamed_pictures(run, setting.note), total=total, description="frames")
        write_video(paths[VIDEO], pictures, fps)
        plot_stream(paths[PLOT], run.mse, setting)
        report = json.dumps(streamed_report(run, setting), indent=2)
        paths[REPORT].write_text(report + "\n", encoding="utf-8")
    for warning in run.warnings:
        stderr().print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    console = stdout()
    console.print(f"[bold]{escape(describe(len(run.mse), setting))}[/]", soft_wrap=True)
    console.print(f"MSE, mean of frames: {sum(run.mse) / len(run.mse):.6f}")
    console.print(f"PSNR of the worst frame: {min(run.psnr):.2f} dB")
    _print_end(run.swap_summary, setting, output)


def _print_result(result: Reconstruction, setting: Setting, output: Path) -> None:
    for warning in result.warnings:
        stderr().print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    table = Table()
    table.add_column("")
    for name in ("reference", "swapped", ""):
        table.add_column(name, justify="right")
    reference, swapped = result.sides["reference"], result.sides["swapped"]
    for row in _rows(reference, swapped):
        table.add_row(*row)
    console = stdout()
    console.print(f"[bold]{escape(title(result, setting))}[/]", soft_wrap=True)
    console.print(table)
    if result.adapted is not None:
        # The first frame of what was compared is the clip's first only where no fewer frames came back.
        whole = len(reference.mse) == result.num_frames
        shipped = f" (as shipped: {reference.mse[0]:.6f})" if whole else ""
        console.print(
            f'with swap(vae, frames="any"): {len(result.adapted)} frames come back, MSE, mean of frames '
            f"{sum(result.adapted) / len(result.adapted):.6f}, first frame {result.adapted[0]:.6f}{shipped}"
        )
    console.print(f"largest difference of a pixel (pixels in [0, 1]): {result.largest_difference:.3g}")
    console.print(f"largest difference of a latent: {result.latent_difference:.3g}")
    _print_end(result.swap_summary, setting, output)


def _print_end(swap_summary: str, setting: Setting, output: Path) -> None:
    console = stdout()
    console.print(f"swap: {escape(swap_summary)}", soft_wrap=True)
    if setting.note:
        console.print(f"[italic]{escape(setting.note)}[/]", soft_wrap=True)
    console.print("written: " + ", ".join(escape(str(output / name)) for name in OUTPUTS), soft_wrap=True)


def _rows(reference: Side, swapped: Side) -> Iterator[tuple[str, str, str, str]]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    yield "MSE, mean of frames", f"{mean(reference.mse):.6f}", f"{mean(swapped.mse):.6f}", ""
    yield "PSNR of the worst frame", f"{min(reference.psnr):.2f} dB", f"{min(swapped.psnr):.2f} dB", ""
    for name, a, b in (
        ("encode", reference.encode, swapped.encode),
        ("decode", reference.decode, swapped.decode),
    ):
        yield (
            f"{name}, median of {len(a.samples_ms)}",
            f"{a.p50_ms:,.0f} ms",
            f"{b.p50_ms:,.0f} ms",
            _ratio(a.p50_ms, b.p50_ms, "faster"),
        )
    yield (
        "peak memory of tensors",
        f"{reference.peak_bytes / 2**20:,.1f} MiB",
        f"{swapped.peak_bytes / 2**20:,.1f} MiB",
        _ratio(reference.peak_bytes, swapped.peak_bytes, "less"),
    )


def _ratio(reference: float, swapped: float, word: str) -> str:
    return f"{reference / swapped:.2f}× {word}" if swapped else ""
