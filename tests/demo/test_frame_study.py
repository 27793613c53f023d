"""The study of frame counts: each figure against a run by hand."""

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.core.errors import InvalidInput

pytest.importorskip("diffusers")

from causalvae_kernels.demo.frame_study import (
    ANY,
    PAD,
    SHIPPED,
    TREATMENTS,
    TRIM,
    study_dict,
    study_frames,
    study_padding,
)
from causalvae_kernels.demo.vae import small_random_vae

COUNTS = (1, 4, 9, 10, 13)


@pytest.fixture(scope="module")
def clip():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (17, 16, 24, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def study(clip):
    told = []
    found = study_frames(small_random_vae(), clip, COUNTS, progress=lambda *args: told.append(args))
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert {total for *_, total in told} == {len(told)}
    return found


@torch.no_grad()
def by_hand(clip, frames, kept=None, frames_option="as_is"):
    """Return what the first `frames` frames come back as, pixels in [0, 1], shape (T, 3, H, W)."""
    vae = small_random_vae()
    x = (clip[:frames].permute(3, 0, 1, 2).unsqueeze(0).float() / 255) * 2 - 1
    with swap(vae, frames=frames_option):
        out = vae(x).sample
    return ((out[0].transpose(0, 1) + 1) / 2).clamp(0, 1)[:kept]


def errors_of(out, clip):
    return (out - clip.permute(0, 3, 1, 2).float() / 255).square().mean(dim=(1, 2, 3)).tolist()


def test_every_count_has_every_treatment(study):
    assert set(study.runs) == {(n, t) for n in COUNTS for t in TREATMENTS}
    assert study.counts == list(COUNTS) == list(study.best)
    assert {n: study.runs[n, SHIPPED].num_out for n in COUNTS} == {1: 1, 4: 1, 9: 9, 10: 9, 13: 16}
    assert {n: study.runs[n, TRIM].num_out for n in COUNTS} == {1: 1, 4: 1, 9: 9, 10: 9, 13: 9}
    for treatment in (PAD, ANY):
        assert all(study.runs[n, treatment].num_out == n for n in COUNTS)
    assert {n: study.runs[n, PAD].num_latents for n in COUNTS} == {1: 1, 4: 3, 9: 3, 10: 5, 13: 5}
    assert {n: study.runs[n, ANY].num_latents for n in COUNTS} == {1: 1, 4: 2, 9: 3, 10: 4, 13: 4}
    assert all(run.ms > 0 for run in study.runs.values())


def test_errors_are_those_of_runs_by_hand(study, clip):
    close = {"rel": 1e-4}
    assert study.runs[13, ANY].mse == pytest.approx(
        errors_of(by_hand(clip, 13, frames_option="any"), clip[:13]), **close
    )
    assert study.runs[13, SHIPPED].mse == pytest.approx(errors_of(by_hand(clip, 13)[3:], clip[:13]), **close)
    assert study.runs[10, SHIPPED].mse == pytest.approx(errors_of(by_hand(clip, 10), clip[1:10]), **close)
    assert study.runs[13, TRIM].mse == pytest.approx(errors_of(by_hand(clip, 9), clip[:9]), **close)
    assert study.best[10].mse == pytest.approx(errors_of(by_hand(clip, 17, 10), clip[:10]), **close)
    repeated = torch.cat([clip[:13], clip[12:13].expand(4, -1, -1, -1)])
    assert study.runs[13, PAD].mse == pytest.approx(errors_of(by_hand(repeated, 17, 13), clip[:13]), **close)


def test_fills_are_compared_where_padding_can_reach(study, clip):
    """4 frames share their latent with one added frame: frames 1 to 3; 10 with three: frame 9."""
    shared, everywhere = [], []
    for n in (4, 10):
        padded = torch.cat([clip[:n], clip[n - 1 : n].expand(-n % 4 + 1, -1, -1, -1)])
        errors = errors_of(by_hand(padded, len(padded), n, "any"), clip[:n])
        shared += errors[1:] if n == 4 else errors[9:]
        everywhere += errors
    expected = tuple(sum(values) / len(values) for values in (shared, everywhere))
    assert study.fills["repeat"] == pytest.approx(expected, rel=1e-4)
    assert set(study.fills) == {"repeat", "mirror", "linear"}


def test_a_clip_that_is_too_short(clip):
    with pytest.raises(InvalidInput, match="clip of 16 frames, expected at least 17 for 10 frames"):
        study_frames(small_random_vae(), clip[:16], [10])


def test_paddings(clip):
    lines = study_padding(small_random_vae(), clip, 16)
    assert lines["17 real frames"] == pytest.approx(errors_of(by_hand(clip, 17), clip), rel=1e-4)
    assert lines["16 as shipped"] == pytest.approx(errors_of(by_hand(clip, 16), clip[:16]), rel=1e-4)
    front = torch.cat([clip[:1], clip[:16]])
    assert lines["first frame repeated in front"] == pytest.approx(
        errors_of(by_hand(front, 17)[1:], clip[:16]), rel=1e-4
    )
    end = torch.cat([clip[:16], clip[15:16]])
    assert lines["last frame repeated at the end"] == pytest.approx(
        errors_of(by_hand(end, 17, 16), clip[:16]), rel=1e-4
    )
    assert len({tuple(line) for line in lines.values()}) == len(lines) == 8


def test_the_report_holds_all_runs(study):
    report = study_dict(study)
    row = report["rows"][4]
    assert row["num_frames"] == 13
    assert row["any"]["num_out"] == 13 and row["as shipped"]["num_out"] == 16
    assert row["real_frames"]["mse"] == study.best[13].mse
    assert report["fills"] == study.fills
