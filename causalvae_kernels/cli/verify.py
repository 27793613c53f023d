"""`verify`: parity of every op and of the VAE on this machine, as a table and an exit code."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from ..bench.machine import device_words
from ..core.errors import InvalidInput
from ..demo.report import finite_or_null
from ..demo.vae import small_random_vae
from ..models import swap
from ..models.loading import load_vae, quiet_diffusers
from ..parity import ParityResult, verify_ops, verify_vae
from .common import EXIT_FAILED, default_device, one_sentence_errors, parse_device
from .console import progress_bar, stdout
from .verify_family import DEFAULT_ROUNDS, Asked, verify_family


@one_sentence_errors
def verify(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="float32 only.")] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A diffusers folder with an AutoencoderKLCogVideoX or, with --family, that class; default: "
            "a small VAE, random weights."
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="Check one family instead, such as wan or AutoencoderKLWan: parity, speed and frame counts."
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="With --family: frames of the clip; default: 17.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="With --family: HEIGHTxWIDTH; default: a small valid size."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="With --family: float32, bfloat16 or float16; default: float32.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="With --family: backend of the swapped ops; default: chosen per call.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="With --family: timed rounds; default: 3.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the inputs of the ops; default: random.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default: the GPU if there is one.")
    ] = None,
) -> None:
    """Compare all backends of all ops and a swapped VAE with the reference, or one family in detail.

    The exit code is 1 if anything fails.
    """
    where = parse_device(device or default_device())
    options = {"--frames": frames, "--size": size, "--dtype": dtype, "--backend": backend, "--rounds": rounds}
    if family is not None:
        _check_alone("--family", {"--quick": quick or None, "--seed": seed})
        rounds = DEFAULT_ROUNDS if rounds is None else rounds
        asked = Asked(family, weights, frames, size, dtype or "float32", backend, rounds, where)
        verify_family(asked, as_json=as_json)
        return
    for option, value in options.items():
        if value is not None:
            raise InvalidInput(f"{option}: goes with --family, which names the class")
    vae = small_random_vae() if weights is None else load_vae(weights)
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    with quiet_diffusers():
        results = _verify(vae, quick, seed, where)
    passed = all(result.passed for result in results)
    if as_json:
        facts = {"passed": passed, "seed": seed, "results": [asdict(result) for result in results]}
        typer.echo(json.dumps(finite_or_null(facts), indent=2))
    else:
        _print(results, passed, seed, where)
    if not passed:
        raise typer.Exit(EXIT_FAILED)


def _check_alone(option: str, others: dict[str, Any]) -> None:
    for other, value in others.items():
        if value is not None:
            raise InvalidInput(f"{other}: does not go with {option}")


def _verify(vae: Any, quick: bool, seed: int, device: torch.device) -> list[ParityResult]:
    with progress_bar() as bar:
        task = bar.add_task("starting", total=None)

        def progress(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name)

        results = verify_ops(progress, quick=quick, seed=seed, device=device)
        return results + verify_vae(vae, swap, progress, quick=quick, device=device)


def _print(results: list[ParityResult], passed: bool, seed: int, device: torch.device) -> None:
    table = Table()
    for heading in ("what", "backend", "dtype"):
        table.add_column(heading)
    for heading in ("error", "allowed"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("")
    notes: dict[str, int] = {}
    for result in results:
        detail = result.detail
        if result.skipped or not result.passed:
            # Sentences are long, and many rows share one: they stand below the table, each once.
            detail = f"({notes.setdefault(detail, len(notes) + 1)})"
        table.add_row(result.name, result.backend, result.dtype, *_numbers(result), _verdict(result), detail)
    console = stdout()
    console.print(table)
    for note, number in notes.items():
        console.print(f"({number}) {escape(note)}", soft_wrap=True)
    failed = sum(not result.passed for result in results)
    skipped = sum(result.skipped for result in results)
    words = "[bold green]all passed[/]" if passed else f"[bold red]{failed} of {len(results)} failed[/]"
    if skipped:
        words += f", {skipped} could not run here"
    where = escape(device_words(device))
    console.print(f"{words} (torch {torch.__version__}, {where}, inputs of seed {seed})", soft_wrap=True)


def _numbers(result: ParityResult) -> tuple[str, str]:
    if result.skipped:
        return "", ""
    return f"{result.error:.2e}", f"{result.allowed:.2e}" if result.allowed else "equal bits"


def _verdict(result: ParityResult) -> str:
    if result.skipped:
        return "[yellow]skipped[/]"
    return "[green]passed[/]" if result.passed else "[bold red]FAILED[/]"
