"""`encode_stream` and `decode_stream` of Wan and Qwen-Image: the numbers of one call."""

from __future__ import annotations

import dataclasses

import diffusers
import pytest
import torch

from causalvae_kernels import InvalidInput, swap
from causalvae_kernels.models import FAMILIES
from tests.support.wan_models import VIDEO, build

TILED = {"tile_sample_min_height": 32, "tile_sample_min_width": 32}
TILED |= {"tile_sample_stride_height": 16, "tile_sample_stride_width": 16}


def joined(stream):
    return torch.cat(list(stream), dim=2)


def near(got, expected):
    """Equal but for the 1x1x1 convolutions of latents: how they sum depends on number and layout.

    That is some 1e-7 at the latents, and ten times as much at the frames.
    """
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=0, atol=1e-5)


def one_call(model, clip):
    latents = model.encode(clip).latent_dist.mode()
    return latents, model.decode(latents, num_frames=clip.shape[2]).sample


@pytest.mark.parametrize(("name", "precision"), [*((name, None) for name in VIDEO), ("2.2", "exact")])
def test_a_stream_gives_the_numbers_of_one_call(name, precision):
    handle = swap(build(name), frames="any", precision=precision)
    for num_frames in (1, 2, 9):
        clip = torch.rand(1, 3, num_frames, 32, 16) * 2 - 1
        latents, frames = one_call(handle.model, clip)
        for count in (None, num_frames):
            stream = handle.encode_stream(clip.split(3, dim=2), num_frames=count)
            decoded = handle.decode_stream(stream)
            assert near(joined(decoded), frames)
        assert near(joined(handle.encode_stream([clip])), latents)
        assert near(joined(handle.decode_stream(latents.split(1, dim=2), num_frames=num_frames)), frames)


@pytest.mark.parametrize("name", VIDEO)
def test_tiles_and_slices(name):
    model = build(name)
    model.enable_tiling(**TILED)
    handle = swap(model, frames="any")
    # Wan 2.2 compares the frames with the size of a tile, and cuts what is folded into patches: fewer tiles.
    batch = 2 if name == "2.2" else 1
    if batch > 1:
        model.enable_slicing()
    clip = torch.rand(batch, 3, 3, 48, 32) * 2 - 1
    latents, frames = one_call(model, clip)
    stream = handle.encode_stream(clip.split(2, dim=2), num_frames=3)
    assert near(joined(stream), latents)
    assert near(joined(handle.decode_stream([latents], num_frames=3)), frames)
    model.disable_tiling()
    assert not near(model.decode(latents, num_frames=3).sample, frames), "nothing was tiled"


def test_two_streams_in_turns_and_an_exception_in_between():
    handle = swap(build("2.1"), frames="any")
    clips = [torch.rand(1, 3, 9, 16, 16) for _ in range(2)]
    expected = [handle.model.encode(clip).latent_dist.mode() for clip in clips]
    streams = [handle.encode_stream(clip.split(2, dim=2)) for clip in clips]
    done = [[], []]
    for _ in range(2):
        for stream, parts in zip(streams, done, strict=True):
            parts.append(next(stream))
        with pytest.raises(InvalidInput, match="expected"):
            list(handle.encode_stream([clips[0][:, :, :6], torch.zeros(1, 3, 1, 8, 8)]))
    for parts, whole in zip(done, expected, strict=True):
        assert near(torch.cat(parts, dim=2), whole)


def test_a_model_whose_latents_are_no_four_frames():
    config = {"base_dim": 4, "z_dim": 2, "num_res_blocks": 1, "dim_mult": [1, 1]}
    model = diffusers.AutoencoderKLWan(**config, temperal_downsample=[True]).eval()
    handle = swap(model, frames="any")
    with pytest.raises(InvalidInput, match="takes 4 frames at a time and makes a latent of 2"):
        handle.encode_stream([torch.zeros(1, 3, 5, 8, 8)])
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 6, 8, 8)).sample.shape[2] == 6


def test_a_family_that_has_no_streams(monkeypatch):
    family = dataclasses.replace(FAMILIES["AutoencoderKLWan"], chunks=None)
    monkeypatch.setitem(FAMILIES, "AutoencoderKLWan", family)
    handle = swap(build("2.1"), frames="any")
    for call in (handle.encode_stream, handle.decode_stream):
        with pytest.raises(InvalidInput, match="encode and decode take any number of frames in one call"):
            call([torch.zeros(1, 3, 5, 16, 16)])
