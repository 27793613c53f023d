"""`train`: make the weights of the demo's VAE, or go on with a run that was stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..bench.threads import num_threads
from ..core.errors import InvalidInput
from ..core.optional import require
from ..core.outputs import check_outputs
from ..demo.training import CHECKPOINT, Recipe
from ..demo.training import train as train_vae
from ..models.loading import vae_folder
from .common import check_least, check_threads, one_sentence_errors
from .console import progress_bar, stdout


@one_sentence_errors
def train(
    output: Annotated[Path, typer.Option(help="Folder of the run; a run that is there is resumed.")] = Path(
        "training"
    ),
    steps: Annotated[int, typer.Option(help="Steps of the whole run.")] = Recipe.steps,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = Recipe.seed,
    learning_rate: Annotated[
        float, typer.Option(help="Peak learning rate; for trained weights half of the default is enough.")
    ] = Recipe.learning_rate,
    save_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 100,
    weights: Annotated[
        Path | None, typer.Option(help="Start a new run from the weights in this folder.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; default: torch's choice.")] = None,
) -> None:
    """Train the demo's small VAE on real clips; an interrupted run resumes from its checkpoint."""
    check_least(("--steps", steps, 1), ("--save-every", save_every, 1))
    check_threads(threads)
    if not 0 < learning_rate < math.inf:
        raise InvalidInput(f"--learning-rate: got {learning_rate}, expected a number above 0")
    check_outputs(output, [CHECKPOINT], overwrite=True)
    if weights is not None:
        vae_folder(weights)
    for module in ("av", "numpy", "diffusers", "safetensors"):
        require(module, "train")
    with num_threads(threads), progress_bar() as bar:
        task = bar.add_task("reading the clips", total=steps)
        written = train_vae(
            output,
            Recipe(steps=steps, seed=seed, learning_rate=learning_rate),
            save_every=save_every,
            weights=weights,
            progress=lambda done, total, mse: bar.update(
                task, description=f"MSE {mse:.4f}", completed=done, total=total
            ),
        )
    stdout().print(f"written: {escape(str(written))}", soft_wrap=True)
