"""The reconstruction of a tiny clip: numbers, alignment, pictures, plot, and the JSON."""

import json
import math

import pytest
import torch

from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.data.metrics import frame_mse
from causalvae_kernels.demo.panels import side_by_side
from causalvae_kernels.demo.plot import plot_frames
from causalvae_kernels.demo.reconstruction import reconstruct
from causalvae_kernels.demo.report import report_dict
from causalvae_kernels.demo.vae import small_random_vae
from tests.support.clips import SETTING, tiny_clip

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:causalvae_kernels runs without its native CPU kernels")


@pytest.fixture(scope="module")
def vae():
    return small_random_vae()


@pytest.fixture(scope="module")
def result(vae):
    return reconstruct(vae, tiny_clip(9), repeats=1)


def test_reference_is_what_diffusers_computes(vae, result):
    clip = tiny_clip(9).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        expected = vae.decode(vae.encode(clip / 127.5 - 1).latent_dist.mode()).sample
    expected = (expected[0].transpose(0, 1) + 1) / 2
    assert torch.equal(result.sides["reference"].frames, expected)
    target = tiny_clip(9).permute(0, 3, 1, 2) / 255
    assert torch.allclose(result.clip, target, atol=1e-6)
    assert result.sides["reference"].mse == pytest.approx(frame_mse(expected.clamp(0, 1), target), rel=1e-4)


def test_difference_is_of_rounding(result):
    assert len(result.difference) == 9
    assert 0 <= result.largest_difference < 1e-3
    assert result.latent_difference < 1e-3
    swapped, reference = result.sides["swapped"].frames, result.sides["reference"].frames
    assert result.largest_difference == (swapped - reference).abs().max().item()


def test_swap_holds_while_it_runs_and_the_model_is_left_unswapped(vae, result):
    assert "0 modules replaced" not in result.swap_summary
    assert not any("forward" in module.__dict__ for module in vae.modules())


def test_times_and_memory_are_there(result):
    for side in result.sides.values():
        assert len(side.encode.samples_ms) == len(side.decode.samples_ms) == 1
        assert min(side.encode.p50_ms, side.decode.p50_ms) > 0
        # at least the latents and the frames live at the end of decoding
        assert side.peak_bytes > 4 * (side.frames.numel() + side.latents.numel())


def test_progress_ends_at_the_total(vae):
    told = []
    reconstruct(vae, tiny_clip(1), repeats=2, progress=lambda *step: told.append(step))
    counts = [done for _, done, _ in told]
    assert counts == sorted(counts)
    assert told[-1] == ("memory", 4 + 2 + 8, 4 + 2 + 8)


def test_more_frames_out_than_in_are_compared_at_the_end(vae):
    clip = tiny_clip(5)
    result = reconstruct(vae, clip, repeats=1)
    assert (result.num_frames, result.num_frames_out, len(result.clip)) == (5, 8, 5)
    assert "5 frames went in and 8 came out" in result.warnings[0] and "1 and 9" in result.warnings[0]
    video = clip.permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        expected = vae.decode(vae.encode(video).latent_dist.mode()).sample[:, :, 3:]
    assert torch.equal(result.sides["reference"].frames, (expected[0].transpose(0, 1) + 1) / 2)


def test_fewer_frames_out_than_in_are_compared_at_the_end(vae):
    result = reconstruct(vae, tiny_clip(3), repeats=1)
    assert (result.num_frames, result.num_frames_out, len(result.clip)) == (3, 1, 1)
    assert torch.allclose(result.clip[0], tiny_clip(3)[2].permute(2, 0, 1) / 255, atol=1e-6)


def test_nan_is_told(vae):
    broken = small_random_vae()
    with torch.no_grad():
        broken.decoder.conv_out.conv.bias.fill_(math.nan)
    result = reconstruct(broken, tiny_clip(1), repeats=1)
    assert any("NaN" in warning for warning in result.warnings)
    assert math.isnan(result.largest_difference)
    facts = json.loads(json.dumps(report_dict(result, SETTING), allow_nan=False))
    assert facts["largest_difference"] is None
    assert len(list(side_by_side(result))) == 1


def test_unknown_backend_is_refused(vae):
    with pytest.raises(InvalidInput, match="backend"):
        reconstruct(vae, tiny_clip(1), backend="abacus")


def test_bfloat16():
    result = reconstruct(small_random_vae(torch.bfloat16), tiny_clip(1), repeats=1)
    assert result.sides["swapped"].frames.dtype == torch.float32
    assert result.largest_difference < 0.2


def test_report(result):
    facts = json.loads(json.dumps(report_dict(result, SETTING), allow_nan=False))
    assert facts["num_frames"] == facts["num_frames_out"] == facts["num_frames_compared"] == 9
    assert facts["setting"]["clip"] == "tiny.mp4"
    assert facts["reference"]["mse_per_frame"] == result.sides["reference"].mse
    assert facts["largest_difference"] == max(facts["difference_per_frame"])


def test_pictures_are_even_and_show_the_clip(result):
    pictures = list(side_by_side(result, "a note"))
    assert len(pictures) == 9
    height, width, channels = pictures[0].shape
    assert height % 2 == width % 2 == 0 and channels == 3
    assert all(picture.shape == (height, width, 3) for picture in pictures)
    # 24×16 pixels are repeated 14 times, below a bar of 34 pixels and right of a gap of 8
    first = pictures[0][34 : 34 + 16 * 14 : 14, 8 : 8 + 24 * 14 : 14]
    assert torch.equal(first, tiny_clip(9)[0])


def test_wide_pictures_stand_two_by_two(result):
    narrow = next(side_by_side(result))
    wide = type(result)(**{**result.__dict__, "clip": result.clip.repeat(1, 1, 1, 30), "sides": {
        name: type(side)(**{**side.__dict__, "frames": side.frames.repeat(1, 1, 1, 30)})
        for name, side in result.sides.items()
    }})  # fmt: skip
    assert narrow.shape[1] > 3 * narrow.shape[0]
    assert next(side_by_side(wide)).shape[:2] == (2 * (16 + 34 + 8) + 8, 2 * 720 + 3 * 8)


def test_plot_is_a_png(result, tmp_path):
    plot_frames(tmp_path / "frames.png", result, SETTING)
    assert (tmp_path / "frames.png").read_bytes().startswith(b"\x89PNG")


def test_plot_of_no_difference(result, tmp_path):
    equal = type(result)(**{**result.__dict__, "difference": [0.0] * 9})
    plot_frames(tmp_path / "frames.png", equal, SETTING)
    some = type(result)(**{**result.__dict__, "difference": [0.0] * 8 + [1e-6]})
    plot_frames(tmp_path / "frames.png", some, SETTING)
