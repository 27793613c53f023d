"""`plan_memory`: what memory an encode or a decode takes, before it runs.

The model's own code runs on a copy without data (`core.dry_run`): chunks, caches, tiles, slices and whatever
a swap replaces, for every VAE of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import machine_memory
from ..core.checks import check_choice, check_count
from ..core.dry_run import DryRun
from ..core.errors import InvalidInput
from ..core.packed import packed_budget, packed_size
from .pieces import has_tiling, in_one_piece, in_tiles

STEPS = ("encode", "decode")


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one step, in bytes.

    Attributes:
        model: Name of the model's class.
        step: "encode" or "decode".
        shape: Of what goes in: (B, C, T, H, W).
        dtype: Of the parameters.
        device: Where the model is to run.
        parameters: Of the whole model.
        loaded: Whether the parameters are there already, so that they are not in `available`.
        packed: Packed weights that the native kernels keep beside the parameters, within the budget.
        packed_budget: What they may take.
        untiled: The peak over what lives when the call begins, without tiles and overlapping windows in time.
        tiled: The same with diffusers' tiling and its default overlaps; None where the model has none.
        available: What may be taken.
    """

    model: str
    step: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    parameters: int
    loaded: bool
    packed: int
    packed_budget: int
    untiled: int
    tiled: int | None
    available: int

    def needed(self, *, tiled: bool = False) -> int:
        """Return what must be free: the peak, packed weights, and parameters that are not there yet.

        Raises:
            InvalidInput: `tiled` is asked of a model that has no tiling.
        """
        if tiled and self.tiled is None:
            raise InvalidInput(f"needed: {self.model} has no tiling, expected tiled=False")
        peak = self.tiled if tiled else self.untiled
        return peak + self.packed + (0 if self.loaded else self.parameters)

    @property
    def fits(self) -> bool:
        """Whether it fits without tiling."""
        return self.needed() <= self.available

    @property
    def fits_tiled(self) -> bool:
        """Whether it fits with tiling."""
        return self.tiled is not None and self.needed(tiled=True) <= self.available

    @property
    def verdict(self) -> str:
        """What to do, as a word: "untiled", "tiled" or "too large"."""
        return "untiled" if self.fits else "tiled" if self.fits_tiled else "too large"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {**asdict(self), "shape": list(self.shape), "needed": self.needed(), "verdict": self.verdict}


def plan_memory(
    vae: nn.Module,
    num_frames: int,
    height: int,
    width: int,
    *,
    step: str = "decode",
    batch: int = 1,
    device: torch.device | str | None = None,
    available: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> MemoryPlan:
    """Tell what memory an encode or a decode takes; nothing is computed and nothing large allocated.

    Args:
        vae: A video VAE of diffusers, swapped or not; its parameters may be on "meta".
        num_frames: Frames of the clip.
        height: Of a frame.
        width: Of a frame.
        step: "encode" or "decode".
        batch: Clips at a time.
        device: Where it is to run: a GPU need not be there, but a torch that knows of GPUs. Default: where
            the parameters are, a CPU for those on "meta".
        available: Bytes that may be taken; default: what is free on the device.
        progress: Called with a word at the beginning of each part.

    Returns:
        A `MemoryPlan`. Exact but for what happens inside other libraries (docs/memory.md); no gradients.

    Raises:
        InvalidInput: A number or a word does not fit, or the model refuses such a clip.
    """
    check_choice("plan_memory", "step", step, STEPS)
    numbers = {"num_frames": num_frames, "height": height, "width": width, "batch": batch}
    batch, frames, rows, columns = (
        check_count("plan_memory", name, numbers[name]) for name in ("batch", "num_frames", "height", "width")
    )
    clip = (batch, clip_channels(vae.config), frames, rows, columns)
    shape = clip
    if step == "decode":
        _say(progress, "latents")
        shape = latent_shape(vae, clip)
    return plan_step(vae, step, shape, device=device, available=available, progress=progress)


def clip_channels(config: Any) -> int:
    """Return how many channels a clip has.

    Wan counts those of the patches that it folds frames into, Mochi's `in_channels` the features that its
    encoder makes of a clip; what comes out is a clip again.
    """
    channels = getattr(config, "out_channels", None) or getattr(config, "in_channels", 3)
    patch = getattr(config, "patch_size", None) if hasattr(config, "is_residual") else None
    return channels // patch**2 if patch else channels


def plan_step(
    vae: nn.Module,
    step: str,
    shape: tuple[int, ...],
    *,
    device: torch.device | str | None = None,
    available: int | None = None,
    tiled: bool = True,
    progress: Callable[[str], None] | None = None,
) -> MemoryPlan:
    """As `plan_memory`, for an input of this shape; without `tiled` only the untiled run is counted."""
    parameters = list(vae.parameters())
    where = parameters[0].device
    loaded = where.type != "meta"
    device = torch.device(device) if device is not None else where if loaded else torch.device("cpu")
    if device.type == "cuda" and torch.version.cuda is None:
        raise InvalidInput(
            f"plan: torch {torch.__version__} is built without CUDA and cannot stand for a GPU; plan for cpu"
        )
    peaks: dict[str, int | None] = {"untiled": None, "tiled": None}
    with DryRun(device) as run:
        model = run.copy_of(vae)
        x = torch.empty(shape, dtype=parameters[0].dtype, device=device)
        for name, pieces in (("untiled", in_one_piece), ("tiled", in_tiles)):
            if name == "tiled" and not (tiled and has_tiling(model)):
                continue
            _say(progress, f"{step} {name}")
            with _refusals(step, shape), pieces(model):
                peaks[name] = run.peak_of(lambda: call(model, step, x))
        packed, budget = packed_size(), packed_budget()
    return MemoryPlan(
        model=type(vae).__name__,
        step=step,
        shape=tuple(shape),
        dtype=str(parameters[0].dtype).removeprefix("torch."),
        device=str(device),
        parameters=sum(p.nbytes for p in parameters),
        loaded=loaded,
        packed=packed,
        packed_budget=budget,
        **peaks,
        available=machine_memory.free(device) if available is None else available,
    )


def latent_shape(vae: nn.Module, clip: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the latents of a clip, as the model's encoder makes them."""
    with DryRun() as run:
        model = run.copy_of(vae)
        x = torch.empty(clip, dtype=next(model.parameters()).dtype)
        with _refusals("encode", clip), in_one_piece(model):
            return tuple(call(model, "encode", x)[0].mode().shape)


def call(model: nn.Module, step: str, x: Tensor) -> Any:
    """Run a step as a user does."""
    return getattr(model, step)(x, return_dict=False)


@contextmanager
def _refusals(step: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn what a model says of a clip that it does not take into our error."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"plan: the model cannot {step} an input of shape {tuple(shape)}: {error}"
        ) from error


def _say(progress: Callable[[str], None] | None, word: str) -> None:
    if progress is not None:
        progress(word)
