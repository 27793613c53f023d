"""Other families than CogVideoX: in chunks or in one piece, other counts, other units."""

import json

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.data import LatentDataset
from causalvae_kernels.data.manifest import Folder
from causalvae_kernels.data.posterior import to_model, to_pixels
from causalvae_kernels.data.video import probe
from causalvae_kernels.demo.family_check import build
from causalvae_kernels.models.loading import load_vae, spatial_unit
from tests.support.datasets import encode
from tests.support.video_files import decoded, make_video

pytest.importorskip("av")
pytest.importorskip("diffusers")
pytest.importorskip("safetensors")


@pytest.mark.parametrize("name", ["AutoencoderKLWan", "AutoencoderKLHunyuanVideo15", "AutoencoderKLLTXVideo"])
def test_latents_and_clips_are_those_of_one_call(name, tmp_path):
    vae = build(name, None, torch.float32)
    vae.save_pretrained(tmp_path / "vae")
    unit = spatial_unit(vae)
    path = make_video(tmp_path / "a.mp4", 6, (2 * unit + 4, unit))
    encode(path, "--weights", tmp_path / "vae", "--output", tmp_path / "out", "--verify", "1")
    folder = Folder.read(tmp_path / "out")
    (entry,) = folder.entries()
    assert (entry["width"], entry["height"], entry["num_frames"]) == (2 * unit, unit, 6)
    # As `encode` loads it: with parameters that want gradients, other kernels of the same tier may run.
    vae = load_vae(tmp_path / "vae", class_name=name).requires_grad_(False)
    with torch.no_grad(), swap(vae, frames="any"):
        video = to_model(decoded(path)[:, :, 2:-2], "cpu", torch.float32)
        expected = vae.encode(video).latent_dist
        frames = to_pixels(vae.decode(expected.mean, num_frames=6).sample)
    stored = folder.tensors(entry)
    assert torch.equal(stored["mean"], expected.mean[0]) and torch.equal(stored["logvar"], expected.logvar[0])
    assert len(frames) == 6
    line = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert line == entry and line["model"] == name and probe(path).num_frames == 6


def test_a_posterior_without_variance_is_its_mean(tmp_path):
    build("AutoencoderKLCosmos", None, torch.float32).save_pretrained(tmp_path / "vae")
    path = make_video(tmp_path / "a.mp4", 6, (32, 32))
    encode(path, "--weights", tmp_path / "vae", "--output", tmp_path / "out")
    # As `encode` loads it: with parameters that want gradients, other kernels of the same tier may run.
    vae = load_vae(tmp_path / "vae", class_name="AutoencoderKLCosmos").requires_grad_(False)
    with torch.no_grad(), swap(vae, frames="any"):
        expected = vae.encode(to_model(decoded(path), "cpu", torch.float32)).latent_dist.mode()[0]
    assert torch.equal(LatentDataset(tmp_path / "out")[0]["latents"], expected)
