"""From the frames of one clip to its latents and back, with a swapped VAE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InvalidInput
from ..core.machine_memory import is_out_of_memory
from ..models import Swap
from ..models.plan import MemoryPlan, plan_step
from ..temporal import frame_rule, pad_frames
from .counts import plan_of
from .manifest import Settings
from .shards import Tensors

PACKED_BUDGET = 2**50
"""More than any VAE packs: under a budget, what is packed, and so the last bits, depends on earlier clips."""


def to_model(pixels: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Return frames (T, H, W, 3), uint8, as a contiguous clip (1, 3, T, H, W): x / 127.5 - 1 in float32.

    Always contiguous: another memory format can mean other kernels, and so other last bits.
    """
    video = pixels.to(device).permute(3, 0, 1, 2).unsqueeze(0).contiguous().float()
    return video.div_(127.5).sub_(1).to(dtype)


def to_pixels(video: Tensor) -> Tensor:
    """Return a clip (1, 3, T, H, W) in [-1, 1] as frames (T, H, W, 3), uint8, on the CPU."""
    frames = video.squeeze(0).permute(1, 2, 3, 0).float()
    return frames.add(1).mul(127.5).round().clamp(0, 255).to("cpu", torch.uint8)


class ClipCoder:
    """Encodes and decodes one clip at a time, so that its latents depend on nothing else.

    Attributes:
        vae: The model.
        settings: Of the data set.
    """

    def __init__(self, vae: nn.Module, handle: Swap, settings: Settings) -> None:
        """Take a VAE that is swapped with `frames="any"`."""
        self.vae, self.settings, self._handle = vae, settings, handle
        self._rule = frame_rule(vae)
        self._device = next(vae.parameters()).device
        self._plans: dict[tuple[int, ...], MemoryPlan] = {}

    def encode(self, pixels: Tensor) -> tuple[Tensors, dict[str, Any]]:
        """Encode frames (T, H, W, 3), uint8.

        Where memory does not suffice, tiles are tried, and the second result says so. With `memory_mib` the
        plan decides before, by the shape alone.

        Returns:
            The latents (C, l, h, w) by name, on the CPU, and what is recorded about them.

        Raises:
            InvalidInput: The policy cannot take so many frames, or they do not fit into the memory.
        """
        plan = plan_of(len(pixels), self._rule, self.settings.policy)
        run = plan.run_frames - plan.lead_frames  # the swapped model adds those itself
        pixels = pixels[: min(run, len(pixels))]
        video = to_model(pixels, self._device, self.vae.dtype)
        video = pad_frames(video, run)
        tiled = self._must_tile(tuple(video.shape))
        try:
            tensors = self._moments(video, plan.kept_frames, tiled)
        except RuntimeError as error:
            if tiled or not is_out_of_memory(error):
                raise
            tiled, tensors = True, None
        if tensors is None:  # outside of the block, whose exception holds the tensors of the first try
            self._handle.release_memory()
            tensors = self._moments(video, plan.kept_frames, self._check_tiles(tuple(video.shape)))
        facts = {
            "num_frames": plan.kept_frames,
            "run_frames": run,
            "width": video.shape[4],
            "height": video.shape[3],
            "latents": list(tensors["mean"].shape),
            "moments": list(tensors),
            "tiled": tiled,
        }
        return tensors, facts

    def decode(self, mean: Tensor, num_frames: int, *, tiled: bool = False) -> Iterator[Tensor]:
        """Decode latents (C, l, h, w) to frames (H, W, 3), uint8, chunk by chunk if the family has chunks."""
        latents = mean.unsqueeze(0).to(self._device, self.vae.dtype)
        try:
            parts: Iterator[Tensor] = self._handle.decode_stream([latents], num_frames=num_frames)
        except InvalidInput:  # a family without chunks
            parts = self._decoded_whole(latents, num_frames)
        while True:
            # Not around the yield: grad mode and tiling there are those of whoever takes the frames.
            with torch.no_grad(), self._tiles(tiled):
                part = next(parts, None)
            if part is None:
                return
            yield from to_pixels(part)

    def _decoded_whole(self, latents: Tensor, num_frames: int) -> Iterator[Tensor]:
        frames = self.vae.decode(latents, num_frames=num_frames).sample
        yield frames if self._rule.time_dim == 2 else frames.transpose(1, 2)

    def _moments(self, video: Tensor, num_frames: int, tiled: bool) -> Tensors:
        with torch.no_grad(), self._tiles(tiled):
            posterior = self.vae.encode(video, num_frames=num_frames).latent_dist
        dtype = getattr(torch, self.settings.saved_dtype)
        moments = {"mean": getattr(posterior, "mean", None), "logvar": getattr(posterior, "logvar", None)}
        if moments["mean"] is None:
            moments["mean"] = posterior.mode()
        if self.settings.moments == "mean" or moments["logvar"] is None:
            del moments["logvar"]
        return {name: t.squeeze(0).to("cpu", dtype).contiguous() for name, t in moments.items()}

    @contextmanager
    def _tiles(self, tiled: bool) -> Iterator[None]:
        if not tiled:
            yield
            return
        before = self.vae.use_tiling
        self.vae.use_tiling = True  # with the tiles that are set, which are those of the plan
        try:
            yield
        finally:
            self.vae.use_tiling = before

    def _plan(self, shape: tuple[int, ...]) -> MemoryPlan:
        if shape not in self._plans:
            self._plans[shape] = plan_step(self.vae, "encode", shape)
        return self._plans[shape]

    def _must_tile(self, shape: tuple[int, ...]) -> bool:
        if self.settings.memory_mib is None:
            return False
        limit, plan = self.settings.memory_mib * 2**20, self._plan(shape)
        if plan.untiled <= limit:
            return False
        if plan.tiled is None or plan.tiled > limit:
            raise InvalidInput(_too_large(plan, limit))
        return True

    def _check_tiles(self, shape: tuple[int, ...]) -> bool:
        """Return True if tiles would help after one piece did not fit."""
        plan = self._plan(shape)
        if plan.tiled is None or plan.tiled >= plan.untiled:
            raise InvalidInput(_too_large(plan, plan.available))
        return True


def _too_large(plan: MemoryPlan, limit: int) -> str:
    untiled, tiled = plan.untiled / 2**20, plan.tiled and plan.tiled / 2**20
    tiles = plan.tiled_unsupported_reason if tiled is None else f"{tiled:,.0f} MiB in tiles"
    return f"needs {untiled:,.0f} MiB in one piece ({tiles}), {limit / 2**20:,.0f} MiB may be taken"
