"""Clips of a data set encoded again: the same bits, and how well they come back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .clips import Clip
from .loading import load_clip
from .manifest import Folder
from .metrics import psnr
from .posterior import ClipCoder
from .sampling import Sampling, read_sampled


@dataclass(frozen=True)
class Verified:
    """One clip.

    Attributes:
        source: Its name.
        equal: Whether its latents have the bits that are stored.
        psnr: In dB, of all frames together, decoded from the stored mean; infinite for no error.
        reason: Why it was not encoded again, or None.
    """

    source: str
    equal: bool
    psnr: float | None = None
    reason: str | None = None


def verify_clips(
    folder: Folder, clips: dict[str, Clip], coder: ClipCoder, sampling: Sampling, count: int, seed: int
) -> Iterator[Verified]:
    """Encode some clips again and compare them with what is stored.

    Args:
        folder: Of the data set.
        clips: By name; only these can be drawn.
        coder: Encodes and decodes a clip.
        sampling: Which frames are taken.
        count: How many clips are drawn at most.
        seed: The same one draws the same clips.
    """
    entries = [e for e in folder.entries() if "error" not in e and e["source"] in clips]
    for entry in random.Random(seed).sample(entries, min(count, len(entries))):
        source = entry["source"]
        loaded = load_clip(clips[source], folder, sampling)
        if loaded.known is None:
            yield Verified(source, False, reason=loaded.error or "the file has changed")
            continue
        pixels = torch.stack(list(read_sampled(clips[source].path, sampling, folder.settings.unit)))
        again, stored = coder.encode(pixels)[0], folder.tensors(entry)
        equal = again.keys() == stored.keys() and all(
            torch.equal(again[name], stored[name]) for name in again
        )
        frames = coder.decode(stored["mean"], entry["num_frames"], tiled=entry["tiled"])
        error, size = 0.0, 0
        for frame, target in zip(frames, pixels, strict=False):
            error += (frame.double() - target.double()).square().sum().item() / 255**2
            size += frame.numel()
        yield Verified(source, equal, psnr(error / size))
