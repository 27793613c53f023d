"""One chunk through CogVideoX's encoder or decoder, as its `_encode`, `_decode` and `tiled_*` do it.

Where those loop over the chunks of a sample, and of a tile, these take one chunk of all of them; so they keep
a cache for each, in a dictionary of the caller's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .tiles import Caches, Tiles, run_parts


def chunk_sizes(model: nn.Module) -> tuple[int, int]:
    """Return how many frames, and how many latents, the model takes at a time."""
    return model.num_sample_frames_batch_size, model.num_latent_frames_batch_size


def channels(model: nn.Module) -> tuple[int, int]:
    """Return how many channels frames and latents have."""
    return model.config.in_channels, model.config.latent_channels


def spatial_ratio(model: nn.Module) -> int:
    """Return how many pixels a latent pixel stands for, in each direction."""
    return 2 ** (len(model.config.block_out_channels) - 1)


def count_chunks(model: nn.Module, step: str, x: Tensor) -> int:
    """Return in how many chunks `_encode` ("encode") or `_decode` takes a sample."""
    frames, latents = chunk_sizes(model)
    return max(x.shape[2] // (frames if step == "encode" else latents), 1)


def encode_chunk(model: nn.Module, frames: Tensor, caches: Caches) -> Any:
    """Encode a chunk.

    Args:
        model: An adapted model.
        frames: Shape (B, C, t, H, W); t is 4k+1 in the first chunk, and a multiple of 4 in others.
        caches: Empty for the first chunk; the model's state, which is replaced by the new one.

    Returns:
        A `DiagonalGaussianDistribution` over (B, C, l, h, w).

    Raises:
        InvalidInput: Tiling or slicing changed since the last chunk.
    """
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    samples = (model.tile_sample_min_height, model.tile_sample_min_width)
    latents = (model.tile_latent_min_height, model.tile_latent_min_width)
    moments = run_parts(_encode, model, frames, caches, _tiles(model, frames, samples, latents))
    return DiagonalGaussianDistribution(moments)


def decode_chunk(model: nn.Module, latents: Tensor, caches: Caches) -> Tensor:
    """Decode a chunk.

    Args:
        model: An adapted model.
        latents: Shape (B, C, l, h, w), any l.
        caches: As in `encode_chunk`.

    Returns:
        Frames, shape (B, 3, t, H, W): 4l-3 of the first chunk, 4l of others.

    Raises:
        InvalidInput: As `encode_chunk`.
    """
    small = (model.tile_latent_min_height, model.tile_latent_min_width)
    large = (model.tile_sample_min_height, model.tile_sample_min_width)
    return run_parts(_decode, model, latents, caches, _tiles(model, latents, small, large))


def _encode(model: nn.Module, x: Tensor, cache: Any) -> tuple[Tensor, Any]:
    x, cache = model.encoder(x, conv_cache=cache)
    return (x if model.quant_conv is None else model.quant_conv(x)), cache


def _decode(model: nn.Module, x: Tensor, cache: Any) -> tuple[Tensor, Any]:
    return model.decoder(x if model.post_quant_conv is None else model.post_quant_conv(x), conv_cache=cache)


def _tiles(model: nn.Module, x: Tensor, size: tuple[int, int], out: tuple[int, int]) -> Tiles | None:
    """Return the tiles of `x`, of this size, which become tiles of size `out`; None for the whole of it."""
    height, width = x.shape[3:]
    if not model.use_tiling or (height <= size[0] and width <= size[1]):
        return None
    overlap = (model.tile_overlap_factor_height, model.tile_overlap_factor_width)
    step = tuple(int(length * (1 - part)) for length, part in zip(size, overlap, strict=True))
    blend = tuple(int(length * part) for length, part in zip(out, overlap, strict=True))
    return Tiles(size, step, blend, tuple(a - b for a, b in zip(out, blend, strict=True)))
