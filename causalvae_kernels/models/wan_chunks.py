"""One chunk through Wan's encoder or decoder, as its `_encode`, `_decode` and `tiled_*` do it.

Where those loop over the chunks of a sample, and of a tile, these take one chunk of all of them, and keep the
feature cache of each in a dictionary of the caller's. Inside of a chunk the model is given the frames as it
wants them: the first one alone, then four at a time; latents always one by one.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..core import machine_memory
from ..core.errors import InvalidInput
from ..core.precision import resolve_precision
from ..temporal import frame_rule
from .clip_state import Carried, LastRead
from .swap import Link
from .tiles import Caches, Tiles, run_parts
from .wan_coders import schedule_of

_FRAMES, _LATENTS = 4, 1


def chunk_sizes(model: nn.Module) -> tuple[int, int]:
    """Return how many frames, and how many latents, the model takes at a time.

    Raises:
        InvalidInput: The frames that the model takes at a time are not one latent.
    """
    ratio = frame_rule(model).temporal_compression_ratio
    if ratio != _FRAMES:
        raise InvalidInput(
            f"this model takes {_FRAMES} frames at a time and makes a latent of {ratio}, expected one that "
            f"makes a latent of {_FRAMES}; encode and decode take any number of frames in one call"
        )
    return _FRAMES, _LATENTS


def channels(model: nn.Module) -> tuple[int, int]:
    """Return how many channels frames and latents have."""
    patch = _patch(model)
    return model.encoder.conv_in.in_channels // patch**2, model.config.z_dim


def spatial_ratio(model: nn.Module) -> int:
    """Return how many pixels a latent pixel stands for, in each direction."""
    return 2 ** (len(model.config.dim_mult) - 1) * _patch(model)


def encode_chunk(model: nn.Module, frames: Tensor, caches: Caches, per_pass: int = 1) -> Any:
    """Encode a chunk.

    Args:
        model: An adapted model.
        frames: Shape (B, C, t, H, W); t is 4k+1 in the first chunk, and a multiple of 4 in others.
        caches: Empty for the first chunk; the feature caches, which are replaced by the new ones.
        per_pass: How many latents go at a time.

    Returns:
        A `DiagonalGaussianDistribution` over (B, C, l, h, w).

    Raises:
        InvalidInput: Tiling or slicing changed since the last chunk.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    size, step = _sample_tiles(model)
    tiles = None
    if _is_tiled(model, frames, size):
        # The model looks at the frames' size, and cuts what has been folded into patches.
        ratio = model.spatial_compression_ratio // _patch(model)
        whole, kept = (tuple(length // ratio for length in lengths) for lengths in (size, step))
        tiles = Tiles(size, step, tuple(a - b for a, b in zip(whole, kept, strict=True)), kept)
    x = patchify(frames, _patch(model))
    run = functools.partial(_encode, per_pass=per_pass)
    return DiagonalGaussianDistribution(run_parts(run, model, x, caches, tiles))


def decode_chunk(model: nn.Module, latents: Tensor, caches: Caches, per_pass: int = 1) -> Tensor:
    """Decode a chunk.

    Args:
        model: An adapted model.
        latents: Shape (B, C, l, h, w), any l.
        caches: As in `encode_chunk`.
        per_pass: As in `encode_chunk`.

    Returns:
        Frames, shape (B, 3, t, H, W): 4l-3 of the first chunk, 4l of others.

    Raises:
        InvalidInput: As `encode_chunk`.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    ratio, patch = model.spatial_compression_ratio, _patch(model)
    size, step = (tuple(length // ratio for length in lengths) for lengths in _sample_tiles(model))
    tiles = None
    if _is_tiled(model, latents, size):
        whole, kept = (tuple(length // patch for length in lengths) for lengths in _sample_tiles(model))
        tiles = Tiles(size, step, tuple(a - b for a, b in zip(whole, kept, strict=True)), kept)
    out = unpatchify(
        run_parts(functools.partial(_decode, per_pass=per_pass), model, latents, caches, tiles), patch
    )
    # Qwen-Image clamps only what it decodes in one piece.
    return out if tiles is not None and not _is_wan(model) else out.clamp(-1.0, 1.0)


def merged(model: nn.Module, link: Link, step: str, x: Tensor) -> Tensor | None:
    """Run a sample in one piece, several latents at a time; None: the model's own loop is due.

    No layer of these models looks at time but through its convolutions, which keep their past: with more
    frames at a time the numbers are the same up to rounding, and a convolution has more to do at once.

    Args:
        model: The model.
        link: Of its swap.
        step: "encode" or "decode".
        x: Frames or latents.

    Returns:
        What `_encode` returns, or the sample of `_decode`.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify

    count = per_pass(model, link, step, x)
    if count is None:
        return None
    if step == "encode":
        x = patchify(x, _patch(model))
        x = x[:, :, : 1 + (x.shape[2] - 1) // _FRAMES * _FRAMES]  # as the model does it
        return _encode(model, x, None, count, ends=True)[0]
    return unpatchify(_decode(model, x, None, count, ends=True)[0], _patch(model)).clamp(-1.0, 1.0)


def per_pass(model: nn.Module, link: Link, step: str, x: Tensor) -> int | None:
    """Return how many latents behind the first one go at a time; None: one, by the model's own loop."""
    if link.chunk == "as_is" or resolve_precision(link.precision) == "exact":
        return None
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in model.parameters())):
        return None
    size = _sample_tiles(model)[0]
    if step == "decode":
        size = tuple(length // model.spatial_compression_ratio for length in size)
    if _is_tiled(model, x, size) or frame_rule(model).temporal_compression_ratio != _FRAMES:
        return None
    frames = _FRAMES if step == "encode" else _LATENTS
    latents = (x.shape[2] - 1) // frames
    if link.chunk != "auto":
        return link.chunk
    return _most_per_pass(model, link, step, x[:, :, :1], latents) if latents > 1 else 1


def _encode(
    model: nn.Module, x: Tensor, cache: Any, per_pass: int = 1, *, ends: bool = False
) -> tuple[Tensor, Any]:
    lengths, start, done = [], 0, []
    if cache is None:
        lengths, cache = [1], _empty_cache(model, "encoder")
    left = (x.shape[2] - sum(lengths)) // _FRAMES
    lengths += [_FRAMES * n for n in _passes(left, per_pass)]
    for length in lengths:
        part = x[:, :, start : start + length]
        start += length
        given = LastRead(cache) if ends and start == sum(lengths) else cache
        done.append(model.encoder(part, feat_cache=given, feat_idx=Carried([0])))
    return model.quant_conv(torch.cat(done, dim=2)), cache


def _decode(
    model: nn.Module, z: Tensor, cache: Any, per_pass: int = 1, *, ends: bool = False
) -> tuple[Tensor, Any]:
    first = cache is None
    cache = _empty_cache(model, "decoder") if first else cache
    z, lengths, done = model.post_quant_conv(z), [1] if first else [], []
    lengths += _passes(z.shape[2] - len(lengths), per_pass)
    for latents in z.split(lengths, dim=2):
        options = {"first_chunk": True} if first and not done and _is_wan(model) else {}
        given = LastRead(cache) if ends and len(done) == len(lengths) - 1 else cache
        done.append(model.decoder(latents, feat_cache=given, feat_idx=Carried([0]), **options))
    return torch.cat(done, dim=2), cache


def _passes(latents: int, per_pass: int) -> list[int]:
    """Return how many latents each pass takes."""
    whole, rest = divmod(latents, per_pass)
    return [per_pass] * whole + [rest] * (rest > 0)


def _most_per_pass(model: nn.Module, link: Link, step: str, x: Tensor, latents: int) -> int:
    """Return how many latents at a time fit into an eighth of the memory: what is kept from call to call."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

    coder, frames = model.decoder, _LATENTS
    if step == "encode":
        coder, frames, x = model.encoder, _FRAMES, patchify(x, _patch(model))
    if link.memory == "low":
        return 1
    most = machine_memory.total(x.device) // 8
    if link.memory_budget is not None:
        most = min(most, link.memory_budget)
    for count in (4, 2):
        if count <= latents:
            schedule = schedule_of(coder, link, x.expand(-1, -1, count * frames, -1, -1))
            if schedule is None or schedule.calls_others:  # who may look at time, or count the calls
                return 1
            if schedule.size <= most:
                return count
    return 1


def _empty_cache(model: nn.Module, name: str) -> Carried:
    """Return a feature cache with a place for every convolution of the encoder or decoder."""
    coder, counted = getattr(model, name), getattr(model, "_cached_conv_counts", {})
    kind = type(coder.conv_in)
    # The model counted them when it was built; one of them may have been exchanged since.
    count = counted.get(name, 0) or sum(isinstance(module, kind) for module in coder.modules())
    return Carried([None] * count)


def _patch(model: nn.Module) -> int:
    return model.config.get("patch_size") or 1


def _is_wan(model: nn.Module) -> bool:
    """Whether it is Wan's own class; Qwen-Image's is without what Wan 2.2 brought."""
    return "is_residual" in model.config


def _sample_tiles(model: nn.Module) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (height, width) of a tile of frames, and from tile to tile."""
    return (
        (model.tile_sample_min_height, model.tile_sample_min_width),
        (model.tile_sample_stride_height, model.tile_sample_stride_width),
    )


def _is_tiled(model: nn.Module, x: Tensor, size: tuple[int, int]) -> bool:
    return model.use_tiling and (x.shape[3] > size[0] or x.shape[4] > size[1])
