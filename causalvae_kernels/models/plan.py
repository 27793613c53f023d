"""`plan_memory`: what memory an encode or a decode takes, before it runs.

The model's own code runs on a copy without data (`core.dry_run`): chunks, caches, tiles, slices and whatever
a swap replaces, for every VAE of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import machine_memory
from ..core.checks import check_choice, check_count
from ..core.dry_run import DryRun
from ..core.errors import InvalidInput
from ..core.packed import packed_budget, packed_size
from .hooks import why_moved
from .pieces import has_tiling, in_one_piece, in_tiles, vae_of

STEPS = ("encode", "decode")


_ADVICE = {
    "untiled": "fits in one piece: tiling can be left off",
    "tiled": "does not fit in one piece, but with tiling: call enable_tiling()",
    "too large": "does not fit: fewer frames, smaller frames, a half-precision dtype",
}


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one step, in bytes.

    Attributes:
        model: Name of the model's class.
        step: "encode" or "decode".
        shape: Of what goes in: (B, C, T, H, W).
        dtype: Of what goes in.
        device: Where the model is to run.
        parameters: Of the whole model.
        loaded: Whether the parameters are there already, so that they are not in `available`.
        packed: Packed weights that the native kernels keep beside the parameters, within the budget.
        packed_budget: What they may take.
        untiled: The peak over what lives when the call begins, without tiles and overlapping windows in time.
        tiled: The same with diffusers' tiling as it is set; None where there is none, or where it does not
            give the shape that one piece gives.
        available: What may be taken.
        tiled_unsupported_reason: Why `tiled` is None, or None.
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
    tiled_unsupported_reason: str | None = None

    def needed(self, *, tiled: bool = False) -> int:
        """Return what must be free: the peak, packed weights, and parameters that are not there yet.

        Raises:
            InvalidInput: `tiled` is asked where tiling is not supported.
        """
        if tiled and self.tiled is None:
            raise InvalidInput(f"needed: {self.tiled_unsupported_reason}, expected tiled=False")
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

    @property
    def advice(self) -> str:
        """What to do, as a sentence."""
        return _ADVICE[self.verdict]

    def rows(self) -> list[tuple[str, str]]:
        """Return what is needed and what there is, in words and MiB."""
        return [
            ("parameters", mib(self.parameters)),
            (f"packed weights (budget {mib(self.packed_budget)})", mib(self.packed)),
            ("peak of the activations in one piece", mib(self.untiled)),
            ("the same with diffusers' tiling", "not supported" if self.tiled is None else mib(self.tiled)),
            ("needed in one piece, in all", mib(self.needed())),
            ("available", mib(self.available)),
        ]

    def __str__(self) -> str:
        """Return a sentence and a small table."""
        rows = [("MiB", ""), *self.rows()]
        left, right = (max(len(row[side]) for row in rows) for side in (0, 1))
        given = (
            f"{self.model}, {self.step} of {'x'.join(map(str, self.shape))}, {self.dtype} on {self.device}"
        )
        reason = [self.tiled_unsupported_reason] if self.tiled_unsupported_reason else []
        table = [f"  {words:<{left}}  {size:>{right}}".rstrip() for words, size in rows]
        return "\n".join([f"{given}: {self.advice}", *reason, *table])

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
    """Predict the peak memory of an encode or decode; nothing is computed and nothing large is allocated.

    Args:
        vae: A video VAE of diffusers, swapped or not, or a pipeline with one; parameters may be on "meta".
        num_frames: Frames of the clip.
        height: Of a frame.
        width: Of a frame.
        step: "encode" or "decode".
        batch: Batch size.
        device: Where it will run. A GPU need not be present, but torch must be built for one. Default: the
            device of the parameters, a CPU for those on "meta".
        available: Memory limit in bytes; default: what is free on the device.
        progress: Called with a word at the beginning of each part.

    Returns:
        A `MemoryPlan`, without gradients. It is exact, but for what other libraries allocate inside of their
        operators (docs/design/memory.md).

    Raises:
        InvalidInput: A number or a word does not fit, `vae` is no VAE, the model refuses such a clip, or it
            cannot run on tensors without data.
    """
    vae = vae_of(vae)
    vae = getattr(vae, "_orig_mod", vae)  # a compiled model is planned as the one that was compiled
    _check_vae(vae)
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
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    available: int | None = None,
    tiled: bool = True,
    progress: Callable[[str], None] | None = None,
) -> MemoryPlan:
    """As `plan_memory`, for an input of this shape; without `tiled` only the untiled run is counted."""
    shape, parameters = tuple(shape), list(vae.parameters())
    where = parameters[0].device
    loaded = where.type != "meta"
    device = torch.device(device) if device is not None else where if loaded else torch.device("cpu")
    if device.type == "cuda" and torch.version.cuda is None:
        raise InvalidInput(
            f"plan: torch {torch.__version__} is built without CUDA and cannot stand for a GPU; plan for cpu"
        )
    dtype = dtype or dtype_of(vae, step)
    tiled_peak, reason = None, None if tiled else "it was not asked for"
    with DryRun(device) as run:
        model = copy_without_data(vae, run)
        x = torch.empty(shape, dtype=dtype, device=device)
        _say(progress, f"{step} untiled")
        untiled_peak, made = run_step(run, in_one_piece(model), step, x)
        if tiled and not has_tiling(model):
            reason = f"{type(vae).__name__} has no tiling"
        elif tiled:
            _say(progress, f"{step} tiled")
            tiled_peak, reason = _run_tiled(run, model, step, x, made)
        packed, budget = packed_size(), packed_budget()
    return MemoryPlan(
        model=type(vae).__name__,
        step=step,
        shape=shape,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        parameters=sum(p.nbytes for p in parameters),
        loaded=loaded,
        packed=packed,
        packed_budget=budget,
        untiled=untiled_peak,
        tiled=tiled_peak,
        available=machine_memory.free(device) if available is None else available,
        tiled_unsupported_reason=reason,
    )


def dtype_of(vae: nn.Module, step: str) -> torch.dtype:
    """Return the dtype of the half of the model that a step runs."""
    halves = (getattr(vae, name, None) for name in _ENTRANCES[step])
    modules = [half for half in halves if isinstance(half, nn.Module)]
    parameters = (p for module in (*modules, vae) for p in module.parameters())
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.get_default_dtype())


# The modules that the input of a step meets, in this order.
_ENTRANCES = {"encode": ("encoder",), "decode": ("post_quant_conv", "decoder")}


def latent_shape(vae: nn.Module, clip: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the latents of a clip, as the model's encoder makes them."""
    with DryRun() as run:
        model = in_one_piece(copy_without_data(vae, run))
        x = torch.empty(clip, dtype=dtype_of(vae, "encode"), device="cpu")
        return run_step(run, model, "encode", x)[1]


def call(model: nn.Module, step: str, x: Tensor) -> Any:
    """Run a step as a user does, and return the frames or the distribution of latents."""
    output = getattr(model, step)(x)  # VidTok knows no return_dict
    return output if isinstance(output, Tensor) else output[0]


def run_step(run: DryRun, model: nn.Module, step: str, x: Tensor) -> tuple[int, tuple[int, ...]]:
    """Return the peak of a step and the shape of what it makes; whatever a model raises becomes our error."""
    try:
        results: list[Any] = []
        peak = run.peak_of(lambda: results.append(call(model, step, x)))
        (made,) = results
        return peak, tuple((made if isinstance(made, Tensor) else made.mode()).shape)
    except InvalidInput:
        raise
    except Exception as error:  # of somebody else's code
        raise InvalidInput(
            f"plan: the model cannot {step} an input of shape {tuple(x.shape)} and dtype {x.dtype} without "
            f"data: {_words(error)}"
        ) from error


def _run_tiled(
    run: DryRun, model: nn.Module, step: str, x: Tensor, expected: tuple[int, ...]
) -> tuple[int | None, str | None]:
    """Return the peak with tiles, or why the tiles that are set do not give the result's shape."""
    name = type(model).__name__
    try:
        peak, made = run_step(run, in_tiles(model), step, x)
    except InvalidInput as error:
        return None, f"{name} fails with tiling as it is set: {_words(error.__cause__ or error)}"
    if made != expected:
        return None, f"{name} with tiling as it is set gives the shape {made}, in one piece {expected}"
    return peak, None


def copy_without_data(vae: nn.Module, run: DryRun) -> nn.Module:
    """Return a copy without data of a model whose weights stay where they are."""
    for name, module in vae.named_modules():
        reason = why_moved(module)
        if reason is not None:
            raise InvalidInput(
                f"plan: {name or type(vae).__name__} cannot be planned: {reason}, which may move or cast "
                "weights during the call; plan before it is attached, or without it"
            )
    try:
        return run.copy_of(vae)
    except InvalidInput:
        raise
    except Exception as error:  # of somebody else's __deepcopy__ or __reduce__
        raise InvalidInput(
            f"plan: it runs a copy of the model, and {type(vae).__name__} cannot be copied: {_words(error)}"
        ) from error


def _check_vae(vae: object) -> None:
    """Refuse what is no model with encode, decode, parameters and a configuration."""
    if not isinstance(vae, nn.Module):
        raise InvalidInput(
            f"plan_memory: got a {type(vae).__name__}, expected a VAE, or a pipeline that has one"
        )
    missing = [name for name in (*STEPS, "config") if not hasattr(vae, name)]
    if missing or next(vae.parameters(), None) is None:
        raise InvalidInput(
            f"plan_memory: got a {type(vae).__name__} without {', '.join(missing) or 'parameters'}, "
            "expected a video VAE of diffusers"
        )


def _words(error: BaseException) -> str:
    """Return what an error says, on one line."""
    words = " ".join(str(error).split())
    return words[:300] if isinstance(error, InvalidInput) else f"{type(error).__name__}: {words[:300]}"


def _say(progress: Callable[[str], None] | None, word: str) -> None:
    if progress is not None:
        progress(word)


def mib(size: int) -> str:
    """Return bytes as MiB."""
    return f"{size / 2**20:,.1f}"
