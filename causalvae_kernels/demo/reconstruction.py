"""One clip through the unmodified VAE and through the same VAE with our ops swapped in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..bench.memory import peak_allocated
from ..bench.timing import Timing, time_once, time_providers
from ..data.metrics import frame_max_difference, frame_mse, psnr
from ..models import swap
from ..parity import round_trip
from ..temporal import FrameRule, frame_rule

SIDES = ("reference", "swapped")

# Up to this much work per round (all four passes), three timed rounds are worth their time; else one.
_SMALL_ROUND_MS = 30_000
_SMALL_REPEATS = 3

Progress = Callable[[str, int, int], None]
"""Called with the name of the phase, how many steps are done, and how many there are."""


@dataclass(frozen=True)
class Side:
    """What one of the two VAEs did.

    Attributes:
        frames: (T', 3, H, W), float32, on the CPU, pixels with black 0 and white 1, not clamped.
        latents: (1, C, L, h, w), float32, on the CPU.
        mse: Per compared frame, against the clip, after clamping to [0, 1].
        encode: Times of encoding the clip to the mode of its latents.
        decode: Times of decoding these.
        peak_bytes: Peak of the tensors allocated by encoding and decoding, parameters and clip not counted.
    """

    frames: Tensor
    latents: Tensor
    mse: list[float]
    encode: Timing
    decode: Timing
    peak_bytes: int

    @property
    def psnr(self) -> list[float]:
        """Per compared frame, in dB."""
        return [psnr(value) for value in self.mse]


@dataclass(frozen=True)
class Reconstruction:
    """The reconstruction of a clip by both VAEs.

    Attributes:
        clip: (T, 3, H, W), float32, on the CPU, pixels in [0, 1]; the compared frames.
        sides: "reference" and "swapped".
        difference: Per compared frame, the largest |swapped - reference| of the pixels.
        latent_difference: The largest of the latents.
        num_frames: Frames that went in.
        num_frames_out: Frames that came out.
        swap_summary: What was replaced, in a line.
        warnings: Sentences.
        adapted: Where the model as shipped does not bring this number of frames back: the mean squared error
            of each of the `num_frames` frames with `swap(vae, frames="any")`; else None.
    """

    clip: Tensor
    sides: dict[str, Side]
    difference: list[float]
    latent_difference: float
    num_frames: int
    num_frames_out: int
    swap_summary: str
    warnings: list[str]
    adapted: list[float] | None = None

    @property
    def largest_difference(self) -> float:
        """Of all compared frames; NaN if any of them is."""
        return torch.tensor(self.difference, dtype=torch.float64).max().item()


@torch.no_grad()
def reconstruct(
    vae: Any,
    clip: Tensor,
    *,
    device: torch.device | str = "cpu",
    backend: str | None = None,
    precision: str | None = None,
    repeats: int | None = None,
    progress: Progress | None = None,
) -> Reconstruction:
    """Encodes and decodes a clip with the unmodified VAE and with a swapped copy of it.

    The models chunk the frames as they always do. Both start from the same pixels, and each decodes its own
    latents (the mode of the posterior), so the difference is that of the whole way. Times alternate between
    the two; the memory is measured in one more, untimed pass.

    Args:
        vae: A model that `swap` knows, in evaluation mode; it is moved to `device` and left unswapped.
        clip: (T, H, W, 3), uint8, RGB; H and W as the model needs them.
        device: Where the work is done.
        backend: As in `swap`.
        precision: As in `swap`.
        repeats: Timed rounds; None takes three, or one where a round takes long.
        progress: Told about each step.

    Raises:
        InvalidInput: If `swap` refuses the model, the backend or the precision.
        BackendUnavailable: If the backend cannot run a call.
    """
    vae = vae.to(device)
    models = {"reference": vae, "swapped": copy.deepcopy(vae)}
    handle = swap(models["swapped"], backend=backend, precision=precision)
    # Frames come with their colours innermost; the models are used with contiguous (B, C, T, H, W).
    pixels = clip.permute(3, 0, 1, 2).unsqueeze(0).contiguous()
    video = (pixels.to(device, torch.float32) / 127.5 - 1).to(vae.dtype)

    latents: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def encode(side: str) -> None:
        latents[side] = models[side].encode(video).latent_dist.mode()

    def decode(side: str) -> None:
        outputs[side] = models[side].decode(latents[side]).sample

    encoders = {side: lambda side=side: encode(side) for side in SIDES}
    decoders = {side: lambda side=side: decode(side) for side in SIDES}
    steps = _Steps(progress, total=4 + 2 + 4 * (repeats or _SMALL_REPEATS))

    steps.phase("first pass")
    warm_ms = 0.0
    for calls in (encoders, decoders):
        for side in SIDES:
            warm_ms += time_once(calls[side], device)
            steps.done()
    frames = {side: _to_frames(output) for side, output in outputs.items()}
    kept_latents = {side: value.float().cpu() for side, value in latents.items()}

    if repeats is None:
        repeats = _SMALL_REPEATS if warm_ms <= _SMALL_ROUND_MS else 1
        steps.total = 4 + 2 + 4 * repeats
    timings = {}
    for what, calls in (("encode", encoders), ("decode", decoders)):
        steps.phase(f"timing {what}")
        timings[what] = time_providers(calls, repeats=repeats, warmup=0, device=device, progress=steps.done)

    steps.phase("memory")
    latents.clear()
    outputs.clear()
    peaks = {}
    for side in SIDES:
        peaks[side] = peak_allocated(lambda model=models[side]: round_trip(model, video), device)
        steps.done()

    rule, adapted, summary = frame_rule(vae), None, handle.summary()
    if not rule.is_valid(video.shape[2]):
        steps.phase("any number of frames")
        with swap(models["swapped"], backend=backend, precision=precision, frames="any"):
            adapted = _to_frames(models["swapped"](video).sample)

    return _compare(
        rule=rule,
        adapted=adapted,
        clip=_to_frames(video.float()),
        frames=frames,
        latents=kept_latents,
        timings=timings,
        peaks=peaks,
        swap_summary=summary,
    )


def _compare(
    rule: FrameRule,
    adapted: Tensor | None,
    clip: Tensor,
    frames: dict[str, Tensor],
    latents: dict[str, Tensor],
    timings: dict[str, dict[str, Timing]],
    peaks: dict[str, int],
    swap_summary: str,
) -> Reconstruction:
    num_frames, num_out = len(clip), len(frames["reference"])
    # Where the counts differ, the model gains or loses frames at the start; the ends belong together.
    compared = min(num_frames, num_out)
    target = clip[num_frames - compared :]
    sides = {}
    for side in SIDES:
        kept = frames[side][num_out - compared :]
        sides[side] = Side(
            frames=kept,
            latents=latents[side],
            mse=frame_mse(kept.clamp(0, 1), target),
            encode=timings["encode"][side],
            decode=timings["decode"][side],
            peak_bytes=peaks[side],
        )
    warnings = []
    if not rule.is_valid(num_frames):
        warnings.append(_count_warning(rule, num_frames, num_out))
    for side in SIDES:
        if not frames[side].isfinite().all():
            warnings.append(f"the {side} output holds infinite or NaN pixels; try another --dtype")
    return Reconstruction(
        clip=target,
        sides=sides,
        difference=frame_max_difference(sides["swapped"].frames, sides["reference"].frames),
        latent_difference=(latents["swapped"] - latents["reference"]).abs().max().item(),
        num_frames=num_frames,
        num_frames_out=num_out,
        swap_summary=swap_summary,
        warnings=warnings,
        adapted=None if adapted is None else frame_mse(adapted.clamp(0, 1), clip),
    )


def _count_warning(rule: FrameRule, num_frames: int, num_out: int) -> str:
    """Return a sentence about a count that does not make the round trip."""
    happened = f"{num_frames} frames went in and {num_out} came out"
    if num_frames != num_out:
        happened += f" (the last {min(num_frames, num_out)} of both are compared)"
    below, above = rule.nearest_valid(num_frames)
    return (
        f"{happened}: {rule.name} takes {rule.words()}, and spoils the first frames of another number; "
        f'nearest good counts: {below} and {above}; swap(vae, frames="any") takes every number'
    )


def _to_frames(video: Tensor) -> Tensor:
    """(1, 3, T, H, W) with pixels in [-1, 1] to (T, 3, H, W), float32 on the CPU, with pixels in [0, 1]."""
    return (video.squeeze(0).transpose(0, 1).float().cpu() + 1) / 2


class _Steps:
    """Counts steps and tells the listener."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.count, self.name = progress, total, 0, ""

    def phase(self, name: str) -> None:
        self.name = name
        self._tell()

    def done(self, provider: str | None = None) -> None:
        self.count += 1
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.name, self.count, self.total)
