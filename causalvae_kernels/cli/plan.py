"""`plan`: what memory an encode or a decode needs, and whether tiling can be left off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

from ..core import machine_memory
from ..core.env import BACKEND
from ..core.errors import InvalidInput
from ..models import FAMILIES, MemoryPlan, plan_memory, swap
from ..models.plan import STEPS
from ..models.swap import MEMORY
from ..models.without_weights import model_without_weights
from .common import check_least, check_word, default_device, one_sentence_errors, parse_dtype, parse_ints
from .console import progress_bar, stdout


@one_sentence_errors
def plan(
    model: Annotated[
        Path | None,
        typer.Argument(help="A diffusers folder with the config.json of a VAE, or of a pipeline."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Instead of a folder: a family listed by `families`, with its default widths."),
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of the clip.")] = 49,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of a frame.")] = "720x480",
    batch: Annotated[int, typer.Option(help="Batch size.")] = 1,
    step: Annotated[str | None, typer.Option(help="encode or decode; default: both.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda, present or not; default: cuda if there is a GPU.")
    ] = None,
    swapped: Annotated[
        bool | None,
        typer.Option(
            "--swapped/--unswapped",
            help="Plan the swapped or the unmodified model; default: swapped if the class has rules.",
        ),
    ] = None,
    memory: Annotated[str, typer.Option(help="normal or low, as swap(vae, memory=...) takes it.")] = "normal",
    backend: Annotated[
        str | None, typer.Option(help="Backend of the swapped ops; default: chosen per call.")
    ] = None,
    available: Annotated[
        int | None, typer.Option(help="Memory limit in MiB; default: what is free here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> None:
    """Predict the peak memory of an encode or decode, and whether it needs tiling; nothing is computed."""
    width, height = parse_ints("--size", size, 2, "x", "720x480")
    check_least(("--frames", frames, 1), ("--batch", batch, 1), ("--available", available, 0))
    check_word("--step", step, STEPS)
    check_word("--memory", memory, MEMORY)
    check_word("--backend", backend, BACKEND.choices)
    if (model is None) == (family is None):
        raise InvalidInput("plan: expected a folder or --family NAME, one of both")
    place = torch.device(_device(device))
    limit = _available(available, place)
    vae = model_without_weights(model if model is not None else family, parse_dtype(dtype))
    if swapped is None:
        swapped = type(vae).__name__ in FAMILIES
    if swapped:
        swap(vae, backend=backend, memory=memory)
    with progress_bar() as bar:
        task = bar.add_task("starting", total=None)
        plans = [
            plan_memory(
                vae,
                frames,
                height,
                width,
                step=name,
                batch=batch,
                device=place,
                available=limit,
                progress=lambda word: bar.update(task, description=word),
            )
            for name in ((step,) if step else STEPS)
        ]
    if as_json:
        facts = {"swapped": swapped, "memory": memory, "plans": [p.as_dict() for p in plans]}
        typer.echo(json.dumps(facts, indent=2))
        return
    _print(plans, f"{frames} frames of {width}x{height}", swapped, memory)


def _device(word: str | None) -> str:
    word = word or default_device()
    if word not in ("cpu", "cuda"):
        raise InvalidInput(f"--device: got {word!r}, expected cpu or cuda")
    return word


def _available(mebibytes: int | None, device: torch.device) -> int:
    if mebibytes is not None:
        return mebibytes * 2**20
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("--device: torch sees no GPU here; say what it has free with --available MIB")
    return machine_memory.free(device)


def _print(plans: list[MemoryPlan], clip: str, swapped: bool, memory: str) -> None:
    first = plans[0]
    how = ("swapped" + (", memory low" if memory == "low" else "")) if swapped else "as diffusers runs it"
    title = f"{first.model}, {first.dtype} on {first.device}, {how}: {clip}"
    table = Table()
    table.add_column("MiB")
    for plan_ in plans:
        table.add_column(plan_.step, justify="right")
    for cells in zip(*(plan_.rows() for plan_ in plans), strict=True):
        table.add_row(cells[0][0], *(size for _, size in cells))
    console = stdout()
    console.print(f"[bold]{escape(title)}[/]", soft_wrap=True)
    console.print(table)
    for plan_ in plans:
        console.print(f"[bold]{plan_.step}:[/] {plan_.advice}", soft_wrap=True)
        if plan_.tiled_unsupported_reason is not None:
            console.print(f"  {escape(plan_.tiled_unsupported_reason)}", soft_wrap=True)
