"""`handle.schedule(...)`: how a swapped model runs a clip, found out by a run without data."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from ..coder.show import Pass, Shown
from ..core.checks import check_choice, check_count
from ..core.dry_run import DryRun
from ..core.errors import InvalidInput
from .plan import STEPS, clip_channels, copy_without_data, dtype_of, latent_shape, run_step


def schedule_of_clip(
    vae: nn.Module, link: Any, num_frames: int, height: int, width: int, step: str, batch: int
) -> Shown:
    """Return the passes of a step for a clip of this size, tiled as the model is set; see `Swap.schedule`."""
    check_choice("schedule", "step", step, STEPS)
    numbers = {"batch": batch, "num_frames": num_frames, "height": height, "width": width}
    batch, frames, rows, columns = (check_count("schedule", name, n) for name, n in numbers.items())
    clip = (batch, clip_channels(vae.config), frames, rows, columns)
    shape = latent_shape(vae, clip) if step == "decode" else clip
    device = next(vae.parameters()).device
    with DryRun("cpu" if device.type == "meta" else device) as run:
        model = copy_without_data(vae, run)
        coder = model.encoder if step == "encode" else model.decoder
        x = torch.empty(shape, dtype=dtype_of(vae, step), device=run.device)
        run_step(run, model, step, x)
        forward = coder.__dict__.get("forward")
        known = forward.args[1].coders.known if isinstance(forward, functools.partial) else {}
        schedules = [k.schedule for k in known.values() if k.schedule is not None and k.schedule.runs]
    if not schedules:
        raise InvalidInput(
            f"schedule: the modules of this {type(vae).__name__}'s {step}r run one by one: it has no schedule"
        )
    kind = type(coder).__name__
    schedules.sort(key=lambda schedule: schedule.since)
    passes = (Pass(f"{kind} of {_sizes(s.given)}", s.runs, s) for s in schedules)
    return Shown(f"{type(vae).__name__}, {step} of {_sizes(clip)} frames", tuple(passes))


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
