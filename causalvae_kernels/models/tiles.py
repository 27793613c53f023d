"""A chunk cut into samples and overlapping tiles, each with a state of its own, and put together again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.errors import InvalidInput

Caches = dict[tuple[int, int, int], Any]
"""The state of the model by sample of the batch (0 without slicing) and corner of the tile."""


class Tiles(NamedTuple):
    """Overlapping tiles, (height, width) each.

    Attributes:
        size: Of a tile that goes in.
        step: From tile to tile.
        blend: Of what comes out, as much is blended with the neighbour above and the one to the left.
        kept: Of what comes out, as much is kept.
    """

    size: tuple[int, int]
    step: tuple[int, int]
    blend: tuple[int, int]
    kept: tuple[int, int]


def run_parts(
    step: Callable[..., Any], model: nn.Module, x: Tensor, caches: Caches, tiles: Tiles | None
) -> Tensor:
    """Run samples one by one where slicing is on, and tiles one by one where there are any.

    Args:
        step: (model, part, cache) to what becomes of the part, and its new cache.
        model: The model.
        x: A chunk, shape (B, C, T, H, W).
        caches: Of all parts, empty for the first chunk; they are replaced by the new ones.
        tiles: How to cut it; None: the whole of it is one tile.

    Returns:
        The parts, tiles blended.

    Raises:
        InvalidInput: Tiling or slicing changed since the last chunk.
    """
    hook = getattr(model, "_hf_hook", None)
    if hasattr(hook, "pre_forward"):
        hook.pre_forward(model)  # as diffusers' apply_forward_hook does: offloaded weights come back
    samples = x.split(1) if model.use_slicing else (x,)
    tops = range(0, x.shape[3], tiles.step[0]) if tiles else (0,)
    lefts = range(0, x.shape[4], tiles.step[1]) if tiles else (0,)
    places = {(n, top, left) for n in range(len(samples)) for top in tops for left in lefts}
    if caches and caches.keys() != places:
        raise InvalidInput(
            "the model's tiling or slicing was changed while a stream is open: set them before it begins"
        )

    def run(n: int, top: int, left: int) -> Tensor:
        part = samples[n]
        if tiles:
            part = part[:, :, :, top : top + tiles.size[0], left : left + tiles.size[1]]
        out, caches[n, top, left] = step(model, part, caches.pop((n, top, left), None))
        return out

    done = []
    for n in range(len(samples)):
        rows = [[run(n, top, left) for left in lefts] for top in tops]
        done.append(_blended(model, rows, tiles) if tiles else rows[0][0])
    return torch.cat(done) if len(done) > 1 else done[0]


def _blended(model: nn.Module, rows: list[list[Tensor]], tiles: Tiles) -> Tensor:
    strips = []
    for i, row in enumerate(rows):
        strip = []
        for j, tile in enumerate(row):
            if i > 0:
                tile = model.blend_v(rows[i - 1][j], tile, tiles.blend[0])
            if j > 0:
                tile = model.blend_h(row[j - 1], tile, tiles.blend[1])
            strip.append(tile[:, :, :, : tiles.kept[0], : tiles.kept[1]])
        strips.append(torch.cat(strip, dim=4))
    return torch.cat(strips, dim=3)
