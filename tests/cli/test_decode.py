"""`decode`: the clips that latents hold, by name, and what is refused."""

import sys

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.data.manifest import Folder
from causalvae_kernels.data.posterior import to_pixels
from causalvae_kernels.data.video import probe, read_frames, write_video
from causalvae_kernels.demo.vae import small_random_vae
from causalvae_kernels.models.loading import load_vae
from tests.support.datasets import encode
from tests.support.video_files import make_video

pytest.importorskip("av")
pytest.importorskip("diffusers")
pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The folder of a tiny VAE, and one with the latents of two clips and a broken one."""
    folder = tmp_path_factory.mktemp("decode")
    small_random_vae().save_pretrained(folder / "vae")
    (folder / "clips" / "below").mkdir(parents=True)
    make_video(folder / "clips" / "a.mp4", 16, (24, 16))
    make_video(folder / "clips" / "below" / "b.mkv", 5, (32, 16), fps=12)
    (folder / "clips" / "broken.mp4").write_bytes(b"")
    options = ("--weights", folder / "vae", "--clips-per-shard", "1", "--stride", "1")
    for form in ("safetensors", "webdataset"):
        encode(folder / "clips", *options, "--output", folder / form, "--format", form)
    return folder


@pytest.mark.parametrize("form", ["safetensors", "webdataset"])
def test_every_clip_is_written_as_one_call_decodes_it(run, dataset, tmp_path, form):
    out = tmp_path / "out"
    result = run("decode", dataset / form, "--weights", dataset / "vae", "--output", out)
    assert result.code == 0, result.stderr
    assert "decoded 2 clips, 21 frames; 1 have no latents" in result.stdout
    info = {path.relative_to(out).as_posix(): probe(path) for path in out.rglob("*.mp4")}
    assert {name: (i.num_frames, i.width, i.height, i.fps) for name, i in info.items()} == {
        "a.mp4": (16, 24, 16, 24),
        "below/b.mkv.mp4": (5, 32, 16, 12),
    }
    folder = Folder.read(dataset / form)
    entry = next(entry for entry in folder.entries() if entry["source"] == "a.mp4")
    vae = load_vae(dataset / "vae")
    with torch.no_grad(), swap(vae, frames="any"):
        frames = vae.decode(folder.tensors(entry)["mean"].unsqueeze(0), num_frames=16).sample
    write_video(tmp_path / "expected.mp4", to_pixels(frames), 24)
    assert torch.equal(read_frames(out / "a.mp4", 16)[0], read_frames(tmp_path / "expected.mp4", 16)[0])


def test_a_single_shard_and_clips_that_exist(run, dataset, tmp_path):
    arguments = ("decode", dataset / "safetensors" / "shard-00000.safetensors", "--weights", dataset / "vae")
    assert "decoded 1 clips" in run(*arguments, "--output", tmp_path / "out").stdout
    (tmp_path / "out" / "a.mp4").write_bytes(b"mine")
    assert "1 were there" in run(*arguments, "--output", tmp_path / "out").stdout
    assert (tmp_path / "out" / "a.mp4").read_bytes() == b"mine"
    run(*arguments, "--output", tmp_path / "out", "--overwrite")
    assert probe(tmp_path / "out" / "a.mp4").num_frames == 16


def test_what_cannot_be_decoded_is_refused(refuse, dataset, tmp_path):
    out = ("--output", tmp_path / "out")
    small_random_vae(seed=1).save_pretrained(tmp_path / "other")
    arguments = ("decode", dataset / "safetensors")
    assert "not those that encoded" in refuse(*arguments, "--weights", tmp_path / "other", *out)
    assert "holds no dataset.json" in refuse("decode", tmp_path, "--weights", dataset / "vae", *out)
    assert "no such file or folder" in refuse("decode", "none", "--weights", dataset / "vae", *out)
    clip = dataset / "clips" / "a.mp4"
    assert "cannot be read" in refuse("decode", clip, "--weights", dataset / "vae", *out)
    assert not (tmp_path / "out").exists()


def test_frames_are_written_as_the_decoder_makes_them(run, dataset, tmp_path, monkeypatch):
    make_video(tmp_path / "long.mp4", 49, (24, 16))
    encode(tmp_path / "long.mp4", "--weights", dataset / "vae", "--output", tmp_path / "latents")
    module, lengths = sys.modules["causalvae_kernels.data.posterior"], []
    own = module.to_pixels
    monkeypatch.setattr(module, "to_pixels", lambda video: lengths.append(video.shape[2]) or own(video))
    run("decode", tmp_path / "latents", "--weights", dataset / "vae", "--output", tmp_path / "out")
    assert sum(lengths) == probe(tmp_path / "out" / "long.mp4").num_frames == 49
    assert max(lengths) <= 9  # a chunk
