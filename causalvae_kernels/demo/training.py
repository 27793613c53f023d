"""How the small VAE that ships with the package was trained: on real clips of 17 frames or one.

Nothing in here is needed to use the weights. A run is a folder with a checkpoint; it can be stopped at any
step and goes on where it was, with the numbers that it would have given without the stop: what a step sees
depends on the seed and the index of the step alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import InvalidInput
from ..core.optional import require
from ..core.outputs import written_whole
from ..data.metrics import frame_mse
from ..data.video import probe, read_frames
from ..models import swap
from ..models.loading import load_vae
from ..parity import round_trip
from .clip import named_clip

CONFIG: dict[str, Any] = {
    "block_out_channels": (16, 32, 64),
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 32,
}
"""Of an `AutoencoderKLCogVideoX` with 1.9 M parameters: 4 frames of 4x4 pixels are a latent of 32 numbers."""

TRAINING_CLIPS = ("bikes", "bigbuckbunny")
HELD_OUT_CLIP = "carphone"
CLIP_FRAMES = 17

CHECKPOINT, WEIGHTS, LOG = "checkpoint.pt", "weights", "log.jsonl"

# Size of the square crops, and how many make a batch: about the same work each.
_CROPS = ((32, 4), (48, 2), (64, 1))
_IMAGES_PER_CLIP = 8
_LARGEST_FRAME = (640, 360)
# Pixels of a clip, along a side, that become one of a crop, at most.
_LARGEST_SCALE = 3.0
# Of the latents' noise at the beginning: with the usual 0 it hides the latents, and learning starts late.
_FIRST_LOGVAR = -8.0
# Factor of the initial weights of what is added to, or multiplied with, the main path.
_SMALL = 0.1


@dataclass(frozen=True)
class Recipe:
    """What a run does.

    Attributes:
        steps: Optimiser steps of the whole run; the learning rate falls to zero along them.
        seed: Of the initial weights and of everything random afterwards.
        learning_rate: The largest, after `warmup` steps.
        warmup: Steps until there.
        image_share: Share of the steps that see single images.
        kl_weight: Of the Kullback-Leibler divergence per latent element beside the squared error.
        bfloat16: Whether convolutions run in bfloat16 (autocast); weights and optimiser stay float32.
    """

    steps: int = 6000
    seed: int = 0
    learning_rate: float = 2e-3
    warmup: int = 100
    image_share: float = 0.1
    kl_weight: float = 1e-6
    bfloat16: bool = True


Progress = Callable[[int, int, float], None]


def train(
    folder: Path,
    recipe: Recipe,
    *,
    save_every: int = 100,
    evaluate_every: int = 500,
    weights: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train, or go on where the checkpoint in `folder` stopped.

    Args:
        folder: Gets the checkpoint, a log with a line per evaluation, and at the end the weights.
        recipe: What to do; must be the one that a checkpoint was made with.
        save_every: Steps between two checkpoints.
        evaluate_every: Steps between two evaluations on the held-out clip.
        weights: A folder with weights of the same configuration to begin with, instead of random ones; a
            checkpoint in `folder` comes first.
        progress: Called with (steps done, steps in all, mean squared error of the batch, pixels in [0, 1]).

    Returns:
        The folder with the float16 weights and their configuration.

    Raises:
        InvalidInput: The folder holds a run with another recipe, or `weights` do not fit.
        MissingPackage: diffusers, PyAV or the clips are not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = _checkpoint_of(folder, recipe)
    videos = [load_clip(name) for name in TRAINING_CLIPS]
    held_out = load_clip(HELD_OUT_CLIP)
    vae = _new_vae(recipe.seed)
    if weights is not None and checkpoint is None:
        _begin_with(vae, weights)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
    first = 0
    if checkpoint is not None:
        vae.load_state_dict(checkpoint["vae"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        first = checkpoint["step"]
    for step in range(first, recipe.steps):
        mse = _step(vae, optimizer, videos, recipe, step)
        if progress is not None:
            progress(step + 1, recipe.steps, mse)
        done = step + 1
        if done % save_every == 0 or done == recipe.steps:
            state = {
                "vae": vae.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": done,
                "recipe": asdict(recipe),
            }
            with written_whole(folder / CHECKPOINT) as temporary:
                torch.save(state, temporary)
        if done % evaluate_every == 0 or done == recipe.steps:
            _log(folder, done, mse, evaluate(vae, held_out))
    return export(vae, folder / WEIGHTS)


def load_clip(name: str) -> Tensor:
    """Decode a whole clip of `CLIPS`, at most 640x360 pixels.

    Returns:
        Shape (T, 3, H, W), uint8.
    """
    path = named_clip(name)
    info = probe(path)
    size = _LARGEST_FRAME if info.width * info.height > 640 * 360 else None
    frames, _ = read_frames(path, info.num_frames, 0, size)
    return frames.permute(0, 3, 1, 2).contiguous()


def sample_batch(videos: Sequence[Tensor], step: int, recipe: Recipe) -> Tensor:
    """Cut the batch of one step out of the clips.

    Crops of a random scale, place, contrast, direction of time and mirror image: two clips are few.

    Args:
        videos: Each of shape (T, 3, H, W), uint8.
        step: Its index; with the seed it decides everything.
        recipe: For the seed and the share of images.

    Returns:
        Shape (B, 3, 17 or 1, S, S), float32 in [-1, 1].
    """
    generator = _generator(recipe, step)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    size, count = _CROPS[below(len(_CROPS))]
    images = uniform(0, 1) < recipe.image_share
    frames, count = (1, count * _IMAGES_PER_CLIP) if images else (CLIP_FRAMES, count)
    crops = []
    for _ in range(count):
        video = videos[below(len(videos))]
        length, _, height, width = video.shape
        stride = 1 + (below(4) == 0 and frames > 1)
        side = min(round(size * math.exp(uniform(0, math.log(min(height / size, _LARGEST_SCALE))))), height)
        first = below(length - (frames - 1) * stride)
        top, left = below(height - side + 1), below(width - side + 1)
        crop = video[
            first : first + (frames - 1) * stride + 1 : stride, :, top : top + side, left : left + side
        ]
        crop = F.interpolate(crop.float(), (size, size), mode="bilinear", antialias=True) / 127.5 - 1
        if below(2):
            crop = crop.flip(3)
        if below(2):
            crop = crop.flip(0)
        crops.append((crop * uniform(0.8, 1.1) + uniform(-0.1, 0.1)).clamp(-1, 1))
    return torch.stack(crops).transpose(1, 2).contiguous()


def evaluate(vae: Any, video: Tensor, starts: Sequence[int] = (0, 50, 100)) -> dict[str, list[float]]:
    """Send 17 and 16 frames of a clip through the model as shipped.

    Args:
        vae: The model.
        video: Shape (T, 3, H, W), uint8; H and W multiples of 8.
        starts: First frames of the pieces that are averaged over.

    Returns:
        The mean squared error of each frame, pixels in [0, 1], for "17" and "16" frames.
    """
    vae.eval()
    result = {}
    with swap(vae):
        for frames in (CLIP_FRAMES, CLIP_FRAMES - 1):
            pieces = [_round_trip_mse(vae, video[start : start + frames]) for start in starts]
            result[str(frames)] = [sum(frame) / len(frame) for frame in zip(*pieces, strict=True)]
    vae.train()
    return result


def export(vae: Any, folder: Path) -> Path:
    """Write configuration and float16 weights, as `from_pretrained` reads them; the model stays as it is."""
    require("safetensors", "writing weights")
    half = type(vae).from_config(vae.config)
    half.load_state_dict(vae.state_dict())
    half.half().save_pretrained(folder, safe_serialization=True)
    return folder


def _round_trip_mse(vae: Any, piece: Tensor) -> list[float]:
    pixels = piece.float() / 255
    clip = (pixels * 2 - 1).transpose(0, 1).unsqueeze(0)
    _, frames = round_trip(vae, clip)
    return frame_mse((frames[0].transpose(0, 1) + 1) / 2, pixels)


def _new_vae(seed: int) -> Any:
    diffusers = require("diffusers", "the reference VAE")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = diffusers.AutoencoderKLCogVideoX(**CONFIG).train()
    _initialise(vae)
    return vae


@torch.no_grad()
def _initialise(vae: Any) -> None:
    """Begin near the identity: latents without noise, spatial norms that hardly modulate, quiet branches."""
    out = vae.encoder.conv_out.conv
    out.weight[CONFIG["latent_channels"] :] = 0
    out.bias[CONFIG["latent_channels"] :] = _FIRST_LOGVAR
    for module in vae.modules():
        kind = type(module).__name__
        if kind == "CogVideoXSpatialNorm3D":
            scale, shift = module.conv_y.conv, module.conv_b.conv
            for conv, bias in ((scale, 1.0), (shift, 0.0)):
                conv.weight.mul_(_SMALL)
                conv.bias.fill_(bias)
        elif kind == "CogVideoXResnetBlock3D":
            module.conv2.conv.weight.mul_(_SMALL)
            module.conv2.conv.bias.zero_()


def _step(
    vae: Any, optimizer: torch.optim.Optimizer, videos: Sequence[Tensor], recipe: Recipe, step: int
) -> float:
    clip = sample_batch(videos, step, recipe)
    generator = _generator(recipe, step)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * _schedule(step, recipe)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        posterior = vae.encode(clip).latent_dist
        frames = vae.decode(posterior.sample(generator)).sample
    # Pixels in [-1, 1] here, in [0, 1] where errors are told: a quarter.
    error = F.mse_loss(frames.float(), clip) / 4
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    optimizer.zero_grad(set_to_none=True)
    (error + recipe.kl_weight * divergence).backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return error.item()


def _generator(recipe: Recipe, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)


def _schedule(step: int, recipe: Recipe) -> float:
    """Return the factor of the learning rate: linear warm-up, then half a cosine to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    rest = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * rest))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _begin_with(vae: Any, folder: Path) -> None:
    given = load_vae(folder)
    differing = [name for name in CONFIG if _plain(given.config[name]) != _plain(CONFIG[name])]
    if differing:
        raise InvalidInput(
            f"train: the weights in {folder} are of a model with another {', '.join(differing)}; "
            f"expected {', '.join(f'{name}={CONFIG[name]}' for name in differing)}"
        )
    vae.load_state_dict(given.state_dict())


def _checkpoint_of(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    checkpoint = torch.load(path, weights_only=True)
    if checkpoint["recipe"] != asdict(recipe):
        raise InvalidInput(
            f"train: {path} was made with {checkpoint['recipe']}, got {asdict(recipe)}: "
            "give the same recipe to go on, or another folder to start anew"
        )
    return checkpoint


def _log(folder: Path, step: int, mse: float, errors: dict[str, list[float]]) -> None:
    line = {"step": step, "batch_mse": mse, "held_out": errors}
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
