"""A family's swap on this machine, with weights that the user has: parity, speed and frame counts."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bench.memory import peak_allocated
from ..bench.timing import percentile, time_providers
from ..core import machine_memory
from ..core.errors import InvalidInput
from ..models import swap
from ..models.loading import load_vae, quiet_diffusers, vae_class
from ..ops.causal_conv3d.spec import error_factor
from ..parity import Comparison, compare, compare_exactly
from ..temporal import FrameRule, frame_rule
from ..workloads import make_video
from ..workloads.small_vaes import SMALL_VAES

STEPS = ("encode", "decode")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ParityRow:
    """One comparison.

    Attributes:
        tier: The precision tier, and the backend if one was asked for.
        step: "encode" or "decode".
        comparison: With the unmodified model and the oracle; None: it was not made.
        note: Why not.
    """

    tier: str
    step: str
    comparison: Comparison | None
    note: str = ""


@dataclass(frozen=True)
class SpeedRow:
    """Times of one step, in alternation.

    Attributes:
        step: "encode" or "decode".
        original_ms: Of the unmodified model, a time per round.
        swapped_ms: Of the swapped one.
    """

    step: str
    original_ms: tuple[float, ...]
    swapped_ms: tuple[float, ...]

    @property
    def speedup(self) -> float:
        """The median of the ratios."""
        return percentile([a / b for a, b in zip(self.original_ms, self.swapped_ms, strict=True)], 50)


@dataclass(frozen=True)
class FrameRow:
    """What one number of frames becomes.

    Attributes:
        frames: That go in.
        latents: That the unmodified model makes of them; None where it fails.
        shipped: Frames that come out of it; None where it fails.
        expected: What the frame rule says about it.
        adapted: Frames that come out with `frames="any"`; None where that fails.
        note: What the model or the swap said when it failed.
        refused: Whether `swap` refuses `frames="any"` for this model.
    """

    frames: int
    latents: int | None
    shipped: int | None
    expected: int | None
    adapted: int | None
    note: str = ""
    refused: bool = False

    @property
    def passed(self) -> bool:
        """Whether the rule is right, and as many frames come out as go in."""
        return self.shipped == self.expected and (self.refused or self.adapted == self.frames)


def build(class_name: str, weights: Path | None, dtype: torch.dtype) -> nn.Module:
    """Return the model of a folder, or a small one with random weights, in evaluation mode.

    Raises:
        InvalidInput: The folder, or the class, is not there or does not fit.
    """
    if weights is not None:
        return load_vae(weights, dtype, class_name).requires_grad_(False)
    cls = vae_class(class_name)
    with torch.random.fork_rng(devices=[]), quiet_diffusers():
        torch.manual_seed(0)
        return cls(**SMALL_VAES.get(class_name, {})).to(dtype).eval().requires_grad_(False)


def rule_of(vae: nn.Module | str) -> FrameRule | None:
    """Return the frame rule of a model or class; None for one that has none, such as a model of images."""
    try:
        return frame_rule(vae)
    except InvalidInput:
        return None


def what_is_left(vae: nn.Module, **options: Any) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Count the modules that a swap replaces by class, and those that it leaves by class and reason."""
    with swap(vae, **options) as handle:
        report = handle.report
    replaced = Counter(entry.type_name for entry in report if entry.replaced)
    return replaced, Counter((entry.type_name, entry.reason) for entry in report if not entry.replaced)


@torch.no_grad()
def check_parity(
    vae: nn.Module, clip: Tensor, backend: str | None, progress: Progress
) -> Iterator[ParityRow]:
    """Compare the swapped model with the unmodified one under the tolerance rule.

    The oracle is the model in float64 where the memory suffices, else in float32.

    Args:
        vae: The model; it is swapped and restored.
        clip: Shape (1, 3, T, H, W), dtype and device of the model.
        backend: Of the swapped ops; default: the one that is chosen, and `aten`, with which those modules run
            as well that are left where the original is quicker, because their input is small.
        progress: Called with what is done next.
    """
    progress("original")
    reference = round_trip(vae, clip)
    for step, *pair in zip(STEPS, _swapped(vae, clip, backend, "exact"), reference, strict=True):
        yield ParityRow("exact", step, compare_exactly(*pair))
    progress("oracle")
    dtype, note = _oracle_dtype(vae, clip)
    if dtype is None:
        for step in STEPS:
            yield ParityRow("high", step, None, note)
        return
    draws, truth = [reference, *_second_draw(vae, clip)], _truth(vae, clip, dtype)
    factor = error_factor(clip.dtype, winograd=True)
    for choice in dict.fromkeys((backend, backend or "aten")):
        tier = "high" if choice is None else f"high, {choice}"
        progress(f"swapped, {tier}")
        got = _swapped(vae, clip, choice, "high")
        for index, step in enumerate(STEPS):
            comparison = compare(got[index], [draw[index] for draw in draws], truth[index], *factor)
            yield ParityRow(tier, step, comparison, note)


def round_trip(vae: nn.Module, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mode of the latents, and the frames decoded from it."""
    latents = vae.encode(clip).latent_dist.mode()
    return latents, _frames(vae.decode(latents))


def _frames(decoded: Any) -> Tensor:
    """Return the frames that `decode` gave; that of VidTok gives them bare."""
    return decoded if isinstance(decoded, Tensor) else decoded.sample


def _swapped(vae: nn.Module, clip: Tensor, backend: str | None, precision: str) -> tuple[Tensor, Tensor]:
    with swap(vae, precision=precision, backend=backend):
        return round_trip(vae, clip)


def _second_draw(vae: nn.Module, clip: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the reference's rounding errors once more: two clips take other kernels of the framework."""
    try:
        latents, frames = round_trip(vae, torch.cat([clip, clip]))
    except RuntimeError:  # some models of diffusers take one clip at a time
        return
    yield latents[:1], frames[:1]


def _truth(vae: nn.Module, clip: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    oracle = copy.deepcopy(vae).to("cpu", dtype)
    return round_trip(oracle, clip.to("cpu", dtype))


def _oracle_dtype(vae: nn.Module, clip: Tensor) -> tuple[torch.dtype | None, str]:
    """Return in which dtype there is room for the oracle on the CPU, and a note where it is not float64."""
    room = machine_memory.free()
    weights = sum(parameter.numel() for parameter in vae.parameters())
    elements = peak_allocated(lambda: round_trip(vae, clip), clip.device) / clip.itemsize
    for dtype in (torch.float64, torch.float32):
        needed = (weights + elements) * dtype.itemsize
        if needed < 0.9 * room:
            note = f"against float32: float64 needs {_gib(needed * 2)}"
            return dtype, "" if dtype == torch.float64 else note
        if clip.dtype == torch.float32:
            break
    return None, f"an oracle needs {_gib(needed)}, {_gib(room)} are free: take a smaller --size"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


@torch.no_grad()
def check_speed(
    vae: nn.Module, clip: Tensor, backend: str | None, rounds: int, progress: Progress
) -> list[SpeedRow]:
    """Time encode and decode of the unmodified and of the swapped model, in alternation.

    Args:
        vae: The model.
        clip: Shape (1, 3, T, H, W).
        backend: Of the swapped ops.
        rounds: Timed rounds; one more warms up.
        progress: Called after every call.
    """
    # The same parameters in other modules: nothing is swapped and restored between two measurements.
    shared = {id(t): t for t in (*vae.parameters(), *vae.buffers())}
    other = copy.deepcopy(vae, shared)
    rows = []
    with swap(other, backend=backend):
        latents = vae.encode(clip).latent_dist.mode()
        for step, argument in zip(STEPS, (clip, latents), strict=True):
            providers = {
                name: lambda model=model, step=step, x=argument: getattr(model, step)(x)
                for name, model in (("diffusers", vae), ("swapped", other))
            }
            times = time_providers(
                providers,
                repeats=rounds,
                warmup=1,
                device=clip.device,
                progress=lambda name, step=step: progress(f"{step}, {name}"),
            )
            rows.append(SpeedRow(step, times["diffusers"].samples_ms, times["swapped"].samples_ms))
    return rows


@torch.no_grad()
def check_frames(vae: nn.Module, clip: Tensor, progress: Progress) -> Iterator[FrameRow]:
    """Send 1, 2, … frames of a clip through the model, as shipped and with `frames="any"`.

    Nothing is given for a model whose frame rule is not known, such as one of images.

    Args:
        vae: The model.
        clip: Shape (1, 3, T, H, W), small.
        progress: Called with what is done next.
    """
    rule = rule_of(vae)
    if rule is None:
        return
    refusal = _why_not_any(vae)
    for frames in range(1, clip.shape[2] + 1):
        progress(f"{frames} frames")
        latents = shipped = adapted = None
        notes = []
        part = clip[:, :, :frames]
        model = _fresh(vae)  # a count that fails may leave its traces in a model that keeps a cache
        try:
            encoded = model.encode(part).latent_dist.mode()
            latents = encoded.shape[2]
            shipped = _frames(model.decode(encoded)).shape[rule.time_dim]
        except Exception as error:  # what diffusers does with counts that it does not take
            notes.append(f"as shipped: {_words(error)}")
        try:
            if refusal is None:
                adapted = _adapted(_fresh(vae), part, rule)
        except Exception as error:  # reported, and a failure of the check
            notes.append(f"any: {_words(error)}")
        if refusal is not None and frames == 1:
            notes.append(refusal)
        expected, note = rule.round_trip(frames), "; ".join(notes)
        yield FrameRow(frames, latents, shipped, expected, adapted, note, refusal is not None)


def _adapted(model: nn.Module, clip: Tensor, rule: FrameRule) -> int:
    with swap(model, frames="any"):
        encoded = model.encode(clip)
        decoded = model.decode(encoded.latent_dist.mode(), num_frames=encoded.num_frames)
    return _frames(decoded).shape[rule.time_dim]


def _why_not_any(vae: nn.Module) -> str | None:
    """Return why `swap` refuses `frames="any"`, or None."""
    try:
        swap(_fresh(vae), frames="any").restore()
    except InvalidInput as error:
        return str(error)
    return None


def _fresh(vae: nn.Module) -> nn.Module:
    return copy.deepcopy(vae, {id(t): t for t in (*vae.parameters(), *vae.buffers())})


def _words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:160] + "…"


def clip_for(frames: int, size: tuple[int, int], vae: nn.Module) -> Tensor:
    """Return a clip of (height, width) for a model, in its dtype and on its device."""
    parameter = next(vae.parameters())
    channels = int(getattr(vae, "config", {}).get("in_channels", 3))
    # Patches of pixels are channels that the model makes itself.
    channels = 3 if channels % 3 == 0 else channels
    clip = make_video(frames, *size, seed=frames, dtype=parameter.dtype)
    return clip[:, [channel % 3 for channel in range(channels)]].to(parameter.device)
