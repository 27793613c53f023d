"""One thread, a tiny VAE in a folder, and clips of many shapes."""

import os

import pytest
import torch

from tests.support.video_files import make_folder, make_video


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The pictures are so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def no_fsync():
    """Leave the disk out, which can take seconds; what is synced when is a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The folder of a tiny CogVideoX VAE with random weights."""
    pytest.importorskip("diffusers")
    from causalvae_kernels.demo.vae import small_random_vae

    path = tmp_path_factory.mktemp("vae")
    small_random_vae().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """A folder with a clip of every kind, also broken ones."""
    pytest.importorskip("av")
    path = tmp_path_factory.mktemp("mixed") / "clips"
    make_folder(path)
    return path


@pytest.fixture
def clips(tmp_path):
    """Five clips of 24×16 with 9, 5, 13, 1 and 9 frames."""
    pytest.importorskip("av")
    path = tmp_path / "clips"
    path.mkdir()
    for index, frames in enumerate((9, 5, 13, 1, 9)):
        make_video(path / f"{index}.mp4", frames, (24, 16), seed=index)
    return path
