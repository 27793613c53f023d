"""`train`: make the weights of the demo's VAE, or go on with a run that was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..bench.threads import num_threads
from ..core.errors import InvalidInput
from ..demo.optional import require
from ..demo.training import Recipe
from ..demo.training import train as train_vae
from .common import one_sentence_errors, progress_bar, stdout


@one_sentence_errors
def train(
    output: Annotated[Path, typer.Option(help="Folder of the run; a run in it goes on.")] = Path("training"),
    steps: Annotated[int, typer.Option(help="Of the whole run.")] = Recipe.steps,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = Recipe.seed,
    save_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 100,
    weights: Annotated[
        Path | None, typer.Option(help="Begin a new run with the weights in this folder, not at random.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; default: torch's choice.")] = None,
) -> None:
    """Train the demo's small VAE on real clips; stop it at any time, and it goes on from its checkpoint."""
    for option, value in (("--steps", steps), ("--save-every", save_every), ("--threads", threads)):
        if value is not None and value < 1:
            raise InvalidInput(f"{option}: got {value}, expected at least 1")
    for module in ("av", "diffusers", "safetensors"):
        require(module, "train")
    with num_threads(threads), progress_bar() as bar:
        task = bar.add_task("reading the clips", total=steps)
        written = train_vae(
            output,
            Recipe(steps=steps, seed=seed),
            save_every=save_every,
            weights=weights,
            progress=lambda done, total, mse: bar.update(
                task, description=f"MSE {mse:.4f}", completed=done, total=total
            ),
        )
    stdout().print(f"written: {escape(str(written))}", soft_wrap=True)
