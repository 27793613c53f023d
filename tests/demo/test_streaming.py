"""A clip through the swapped VAE in a stream: the numbers of one call, and nothing held."""

import json
import math

import pytest
import torch

from causalvae_kernels import InvalidInput, swap
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.data.metrics import frame_mse
from causalvae_kernels.demo.streaming import StreamedReconstruction, streamed_pictures, streamed_report
from causalvae_kernels.demo.vae import small_random_vae
from tests.support.clips import SETTING, tiny_clip
from tests.support.cover import quick

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:causalvae_kernels runs without its native CPU kernels")


@pytest.fixture(scope="module")
def vae():
    return small_random_vae()


@pytest.mark.parametrize("num_frames", [1, 12, 20])
@pytest.mark.parametrize("dtype", quick([torch.float32, torch.bfloat16], [torch.float32]), ids=str)
def test_frames_and_errors_are_those_of_one_call(vae, num_frames, dtype):
    clip, vae = tiny_clip(num_frames), small_random_vae(dtype)
    video = (clip.permute(3, 0, 1, 2).unsqueeze(0).contiguous().float() / 127.5 - 1).to(dtype)
    with swap(vae, frames="any"), torch.no_grad():
        expected = (vae(video).sample.squeeze(0).transpose(0, 1).float() + 1) / 2
    target = (video.squeeze(0).transpose(0, 1).float() + 1) / 2

    run = StreamedReconstruction(vae, iter(clip), num_frames=num_frames)
    targets, frames = (torch.stack(side) for side in zip(*run, strict=True))
    assert torch.equal(frames, expected) and torch.equal(targets, target)
    assert run.mse == pytest.approx(frame_mse(expected.clamp(0, 1), target), rel=1e-12)
    assert "takes any number of frames" in run.swap_summary and run.warnings == []


def test_frames_are_read_as_they_are_needed(vae):
    read = []

    def frames():
        for index, frame in enumerate(tiny_clip(40)):
            read.append(index)
            yield frame

    run = StreamedReconstruction(vae, frames())
    pairs = iter(run)
    assert not read
    clip, frame = next(pairs)
    assert len(read) == 17 and len(run.mse) == 1
    assert not frame.requires_grad and torch.is_grad_enabled()
    assert torch.allclose(clip, tiny_clip(40)[0].permute(2, 0, 1) / 255, atol=1e-6)
    pairs.close()
    assert "encode" not in vae.__dict__, "the swap is taken out when nobody listens any more"


def test_another_number_of_frames_is_refused(vae):
    with pytest.raises(InvalidInput, match="frames: they ended after 5, expected 6"):
        list(StreamedReconstruction(vae, iter(tiny_clip(5)), num_frames=6))


def test_memory_does_not_grow(vae):
    def run(num_frames):
        frames = (torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8) for _ in range(num_frames))
        for _ in StreamedReconstruction(vae, frames):
            pass

    short, long = peak_allocated(lambda: run(25)), peak_allocated(lambda: run(65))
    assert 0 < long <= 1.1 * short, (short, long)


def test_pictures_and_report(vae):
    run = StreamedReconstruction(vae, iter(tiny_clip(3)))
    pictures = list(streamed_pictures(run, "a note"))
    assert len(pictures) == 3
    for picture in pictures:
        height, width, colours = picture.shape
        assert picture.dtype == torch.uint8 and colours == 3 and height % 2 == width % 2 == 0
        assert width > 2 * 320
    run.mse[1] = math.inf
    report = json.loads(json.dumps(streamed_report(run, SETTING), allow_nan=False))
    assert report["num_frames"] == 3 and report["setting"]["clip"] == "tiny.mp4"
    assert report["swapped"]["mse_per_frame"][1] is None
    assert report["swapped"]["mse_per_frame"][0] == run.mse[0]


def test_bad_pixels_are_told_of(vae):
    vae = small_random_vae()
    torch.nn.init.constant_(vae.decoder.conv_out.conv.bias, math.nan)
    run = StreamedReconstruction(vae, iter(tiny_clip(2)))
    assert len(list(run)) == 2
    assert run.warnings == ["the output holds infinite or NaN pixels; try another --dtype"]
