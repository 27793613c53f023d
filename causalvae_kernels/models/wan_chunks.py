"""One chunk through Wan's encoder or decoder, as its `_encode`, `_decode` and `tiled_*` do it.

Where those loop over the chunks of a sample, and of a tile, these take one chunk of all of them, and keep the
feature cache of each in a dictionary of the caller's. Inside of a chunk the model is given the frames as it
wants them: the first one alone, then four at a time; latents always one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InvalidInput
from ..temporal import frame_rule
from .clip_state import Carried
from .tiles import Caches, Tiles, run_parts

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


def encode_chunk(model: nn.Module, frames: Tensor, caches: Caches) -> Any:
    """Encode a chunk.

    Args:
        model: An adapted model.
        frames: Shape (B, C, t, H, W); t is 4k+1 in the first chunk, and a multiple of 4 in others.
        caches: Empty for the first chunk; the feature caches, which are replaced by the new ones.

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
    return DiagonalGaussianDistribution(run_parts(_encode, model, x, caches, tiles))


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
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    ratio, patch = model.spatial_compression_ratio, _patch(model)
    size, step = (tuple(length // ratio for length in lengths) for lengths in _sample_tiles(model))
    tiles = None
    if _is_tiled(model, latents, size):
        whole, kept = (tuple(length // patch for length in lengths) for lengths in _sample_tiles(model))
        tiles = Tiles(size, step, tuple(a - b for a, b in zip(whole, kept, strict=True)), kept)
    out = unpatchify(run_parts(_decode, model, latents, caches, tiles), patch)
    # Qwen-Image clamps only what it decodes in one piece.
    return out if tiles is not None and not _is_wan(model) else out.clamp(-1.0, 1.0)


def _encode(model: nn.Module, x: Tensor, cache: Any) -> tuple[Tensor, Any]:
    lengths, start = [_FRAMES] * (x.shape[2] // _FRAMES), 0
    if cache is None:
        lengths, cache = [1, *lengths], _empty_cache(model.encoder)
    done = []
    for length in lengths:
        part = x[:, :, start : start + length]
        done.append(model.encoder(part, feat_cache=cache, feat_idx=Carried([0])))
        start += length
    return model.quant_conv(torch.cat(done, dim=2)), cache


def _decode(model: nn.Module, z: Tensor, cache: Any) -> tuple[Tensor, Any]:
    first = cache is None
    cache = _empty_cache(model.decoder) if first else cache
    done = []
    for latent in model.post_quant_conv(z).split(_LATENTS, dim=2):
        options = {"first_chunk": True} if first and not done and _is_wan(model) else {}
        done.append(model.decoder(latent, feat_cache=cache, feat_idx=Carried([0]), **options))
    return torch.cat(done, dim=2), cache


def _empty_cache(coder: nn.Module) -> Carried:
    kind = type(coder.conv_in)
    return Carried([None] * sum(isinstance(module, kind) for module in coder.modules()))


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
