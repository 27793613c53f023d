"""What a VAE makes of every number of frames: as shipped, padded, trimmed, and adapted.

Each run is held against the clip, frame by frame, and against the run over the next 8k+1 real frames, cropped
to the same number: the best that the model can do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InvalidInput
from ..data.metrics import frame_mse
from ..models import swap
from ..parity import round_trip
from ..temporal import DEFAULT_FILL, FILLS, FramePlan, FrameRule, frame_rule, plan_frames

SHIPPED, PAD, TRIM, ANY = "as shipped", "pad", "trim", "any"
TREATMENTS = (SHIPPED, PAD, TRIM, ANY)
"""`PAD` and `TRIM` are the policies with the model as shipped, `ANY` is `swap(vae, frames="any")`."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Run:
    """One number of frames through the model.

    Attributes:
        num_frames: Frames of the clip.
        treatment: What was done about the number.
        num_latents: How many latents they made.
        num_out: Frames that came back.
        mse: Per frame that can be compared, pixels in [0, 1]; where more or fewer frames came back, the last
            ones of both are compared, and where the clip was trimmed, the first ones.
        ms: Encoding and decoding, one run.
    """

    num_frames: int
    treatment: str
    num_latents: int
    num_out: int
    mse: list[float]
    ms: float

    @property
    def mean(self) -> float:
        """Of the frames."""
        return _mean(self.mse)

    @property
    def worst(self) -> float:
        """The frame that came back worst."""
        return max(self.mse)


@dataclass(frozen=True)
class FrameStudy:
    """All runs over one clip.

    Attributes:
        counts: Numbers of frames.
        runs: By number and treatment.
        best: By number, the run over the next 8k+1 real frames, cropped.
        fills: By fill, over all numbers: the mean error of the frames that share a latent with padding, and
            of all frames, which it reaches through the norms' statistics over the chunk.
        skipped: Treatments that are impossible for a number, with the reason.
    """

    counts: list[int]
    runs: dict[tuple[int, str], Run]
    best: dict[int, Run]
    fills: dict[str, tuple[float, float]]
    skipped: dict[tuple[int, str], str]


@torch.no_grad()
def study_frames(
    vae: Any,
    clip: Tensor,
    counts: Sequence[int],
    *,
    backend: str | None = None,
    progress: Progress | None = None,
) -> FrameStudy:
    """Run every number of frames with every treatment.

    Args:
        vae: A model that `swap` adapts, in evaluation mode, unswapped; it is swapped while this runs.
        clip: (T, H, W, 3), uint8, RGB; T is at least `frames_needed(vae, counts)`.
        counts: Numbers of frames, ascending.
        backend: Of the swapped ops.
        progress: Called with a word, the runs done and the runs in all.

    Raises:
        InvalidInput: The clip is too short.
    """
    rule = frame_rule(vae)
    if len(clip) < frames_needed(rule, counts):
        raise InvalidInput(
            f"frames: got a clip of {len(clip)} frames, expected at least {frames_needed(rule, counts)} for "
            f"{max(counts)} frames and the real ones after them"
        )
    pixels = clip.permute(3, 0, 1, 2).unsqueeze(0).float() / 255
    real = {n: rule.nearest_valid(n)[1] for n in counts}
    padded = sum(_is_padded(rule, n) for n in counts)
    done, total = 0, len(set(real.values())) + len(counts) * len(TREATMENTS) + padded * len(FILLS)

    def tell(word: str) -> None:
        nonlocal done
        if progress is not None:
            progress(word, done, total)
        done += 1

    runs: dict[tuple[int, str], Run] = {}
    skipped: dict[tuple[int, str], str] = {}
    whole: dict[int, Run] = {}
    with swap(vae, backend=backend):
        for n in sorted(set(real.values())):
            tell(f"{n} real frames")
            whole[n] = _run(vae, pixels, n, SHIPPED, None)
        for n in counts:
            for treatment in (SHIPPED, PAD, TRIM):
                tell(f"{n} frames, {treatment}")
                try:
                    plan = None if treatment == SHIPPED else plan_frames(n, rule, treatment)
                except InvalidInput as error:
                    skipped[n, treatment] = str(error)
                    continue
                runs[n, treatment] = _run(vae, pixels, n, treatment, plan)
    shared: dict[str, list[float]] = {fill: [] for fill in FILLS}
    everywhere: dict[str, list[float]] = {fill: [] for fill in FILLS}
    with swap(vae, backend=backend, frames="any"):
        for n in counts:
            tell(f"{n} frames, {ANY}")
            runs[n, ANY] = _run(vae, pixels, n, ANY, None)
            if not _is_padded(rule, n):
                continue
            for fill in FILLS:
                tell(f"{n} frames, {fill}")
                errors, first = _padded(vae, pixels, n, fill, rule)
                shared[fill] += errors[first:]
                everywhere[fill] += errors
    means = {fill: (_mean(shared[fill]), _mean(everywhere[fill])) for fill in FILLS if shared[fill]}
    best = {n: _crop(whole[real[n]], n) for n in counts}
    return FrameStudy(list(counts), runs, best, means, skipped)


def frames_needed(rule: FrameRule, counts: Sequence[int]) -> int:
    """Return how many frames the clip must have: up to the next valid number after the largest."""
    return rule.nearest_valid(max(counts))[1]


@torch.no_grad()
def study_padding(
    vae: Any, clip: Tensor, num_frames: int, *, backend: str | None = None
) -> dict[str, list[float]]:
    """Return the error per frame of one number of frames under every padding that people use.

    Args:
        vae: As in `study_frames`.
        clip: As in `study_frames`.
        num_frames: One below a valid number, as 16.
        backend: As in `study_frames`.

    Returns:
        The label of a line of the plot to the error of each frame, pixels in [0, 1].
    """
    pixels = clip.permute(3, 0, 1, 2).unsqueeze(0).float() / 255
    valid = frame_rule(vae).nearest_valid(num_frames)[1]
    missing, real = valid - num_frames, pixels[:, :, :valid]
    given = pixels[:, :, :num_frames] * 2 - 1
    first = given[:, :, :1].expand(-1, -1, missing, -1, -1)

    def errors(video: Tensor, front: int = 0) -> list[float]:
        out = round_trip(vae, video)[1][:, :, front : front + num_frames]
        return _errors(out, pixels[:, :, :num_frames])

    with swap(vae, backend=backend):
        lines = {
            f"{valid} real frames": _errors(round_trip(vae, real * 2 - 1)[1], real),
            f"{num_frames} as shipped": errors(given),
            "zeros in front": errors(torch.cat([torch.zeros_like(first), given], dim=2), missing),
            "first frame repeated in front": errors(torch.cat([first, given], dim=2), missing),
            "zeros at the end": errors(torch.cat([given, torch.zeros_like(first)], dim=2)),
        }
        names = {"repeat": "last frame repeated", "mirror": "mirrored", "linear": "continued"}
        for fill in FILLS:
            plan = plan_frames(num_frames, vae, "pad", fill=fill)
            lines[f"{names[fill]} at the end"] = errors(plan.apply(given))
    return lines


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _is_padded(rule: FrameRule, num_frames: int) -> bool:
    return not rule.is_valid(num_frames, adapted=True)


def _run(vae: Any, pixels: Tensor, num_frames: int, treatment: str, plan: FramePlan | None) -> Run:
    """Send the first `num_frames` frames through the model."""
    clip = pixels[:, :, :num_frames]
    video = clip * 2 - 1
    begin = time.perf_counter()
    if treatment == ANY:
        encoded = vae.encode(video)
        latents = encoded.latent_dist.mode()
        frames = vae.decode(latents, num_frames=encoded.num_frames).sample
    else:
        latents = vae.encode(video if plan is None else plan.apply(video)).latent_dist.mode()
        frames = vae.decode(latents).sample
        frames = frames if plan is None else plan.undo(frames)
    ms = (time.perf_counter() - begin) * 1e3
    out = frames.shape[2]
    if treatment == TRIM:
        clip = clip[:, :, :out]
    same = min(out, clip.shape[2])
    mse = _errors(frames[:, :, out - same :], clip[:, :, clip.shape[2] - same :])
    return Run(num_frames, treatment, latents.shape[2], out, mse, ms)


def _crop(run: Run, num_frames: int) -> Run:
    return Run(num_frames, "real frames", run.num_latents, num_frames, run.mse[:num_frames], run.ms)


def _padded(vae: Any, pixels: Tensor, num_frames: int, fill: str, rule: FrameRule) -> tuple[list[float], int]:
    """Return the error of each frame, and the first frame of the last latent, which padding shares."""
    clip = pixels[:, :, :num_frames]
    plan = plan_frames(num_frames, rule, "pad", fill=fill, adapted=True)
    latents = vae.encode(plan.apply(clip * 2 - 1)).latent_dist.mode()
    errors = _errors(vae.decode(latents, num_frames=num_frames).sample, clip)
    return errors, num_frames - (num_frames - 1) % rule.temporal_compression_ratio


def _errors(frames: Tensor, clip: Tensor) -> list[float]:
    """Return the error of each frame; `frames` have pixels in [-1, 1], `clip` in [0, 1]."""
    return frame_mse(((frames[0].transpose(0, 1).float() + 1) / 2).clamp(0, 1), clip[0].transpose(0, 1))


def study_dict(study: FrameStudy) -> dict[str, Any]:
    """Return the study, ready for `json.dumps`; errors per frame, pixels in [0, 1], times in milliseconds."""
    return {
        "default_fill": DEFAULT_FILL,
        "fills": study.fills,
        "rows": [
            {
                "num_frames": n,
                "real_frames": _run_dict(study.best[n]),
                **{
                    treatment: _run_dict(study.runs[n, treatment])
                    if (n, treatment) in study.runs
                    else {"refused": study.skipped[n, treatment]}
                    for treatment in TREATMENTS
                },
            }
            for n in study.counts
        ],
    }


def _run_dict(run: Run) -> dict[str, Any]:
    return {"num_latents": run.num_latents, "num_out": run.num_out, "mse": run.mse, "ms": run.ms}
