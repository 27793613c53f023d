"""`traffic`: the bytes that CogVideoX's VAE moves, operator by operator, as shipped and swapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..bench.record import write_json
from ..bench.traffic import Traffic
from ..core.errors import InvalidInput
from ..core.optional import require
from ..demo.traffic import REFERENCE, STEPS, vae_traffic
from ..workloads import cogvideox_2b_config, small_cogvideox_config
from .common import check_file, check_least, check_word, one_sentence_errors, parse_dtype, parse_ints
from .console import progress_bar, stdout

WIDTHS = {"2b": cogvideox_2b_config, "small": small_cogvideox_config}
BACKENDS = ("auto", "aten", "cpu", "triton")


@one_sentence_errors
def traffic(
    step: Annotated[str, typer.Option(help="decode or encode.")] = "decode",
    frames: Annotated[int, typer.Option(help="Frames of the clip.")] = 49,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the clip, multiples of 8.")] = "720x480",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    widths: Annotated[str, typer.Option(help="Widths of the model: 2b or small.")] = "2b",
    backend: Annotated[
        list[str] | None,
        typer.Option(help="auto, aten, cpu or triton (no GPU needed); repeatable; default: cpu and triton."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the counts here.")] = None,
) -> None:
    """Count the bytes that a VAE moves, by operator; nothing is computed or timed."""
    check_word("--step", step, STEPS)
    check_word("--widths", widths, tuple(WIDTHS))
    for word in backend or ():
        check_word("--backend", word, BACKENDS)
    check_least(("--frames", frames, 1))
    width, height = parse_ints("--size", size, 2, "x", "720x480")
    if width % 8 or height % 8:
        raise InvalidInput(f"--size: got {size!r}, expected multiples of 8 like 720x480")
    check_file("--json", json_file)
    chosen = list(dict.fromkeys(backend or ("cpu", "triton")))
    torch_dtype = parse_dtype(dtype)
    require("diffusers", "traffic")
    with progress_bar() as bar:
        bar.add_task("counting", total=None)
        found = vae_traffic(WIDTHS[widths](), step, (frames, height, width), torch_dtype, chosen)
    if json_file is not None:
        facts = {"step": step, "widths": widths, "frames": frames, "height": height, "width": width}
        counts = {name: moved.as_dict() for name, moved in found.items()}
        write_json(json_file, {**facts, "dtype": dtype, "traffic": counts})
    _print(found, f"{step}, {widths} widths, {frames} frames of {width}x{height}, {dtype}")


def _print(found: Mapping[str, Traffic], words: str) -> None:
    table = Table(title=f"GB moved: {words}", title_justify="left", title_style="bold")
    table.add_column("operator", no_wrap=True)
    for name in found:
        table.add_column(name if name == REFERENCE else f"swapped, {name}", justify="right")
    names = {name: max(_bytes(t, name) for t in found.values()) for t in found.values() for name in t.moved}
    for name in sorted(names, key=lambda name: -names[name]):
        if names[name] >= _LEAST:
            table.add_row(name, *(_gigabytes(_bytes(t, name)) for t in found.values()))
    table.add_section()
    table.add_row("all", *(f"{t.bytes / 1e9:,.1f}" for t in found.values()))
    table.add_row("without convolutions", *(f"{t.besides_convolutions / 1e9:,.1f}" for t in found.values()))
    least = found[REFERENCE].besides_convolutions
    table.add_row("… of the reference's", *(f"{t.besides_convolutions / least:.3f}" for t in found.values()))
    console = stdout()
    console.print(table)
    console.print(
        "Counted, not computed. An operator reads its inputs and writes its outputs, each once; kernels of "
        "ours move what they declare. 1x1x1 convolutions are no convolutions here.",
        soft_wrap=True,
    )


_LEAST = 5e7  # of bytes: what would be shown as 0.1


def _bytes(found: Traffic, name: str) -> int:
    return found.moved[name].bytes if name in found.moved else 0


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f}" if size else ""
