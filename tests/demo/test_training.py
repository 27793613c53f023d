"""The recipe of the trained VAE: what a step sees, that a run goes on where it stopped, what is written."""

import json

import pytest
import torch

from causalvae_kernels.core.errors import InvalidInput

pytest.importorskip("diffusers")
pytest.importorskip("av")

from causalvae_kernels.demo import training
from causalvae_kernels.demo.training import CHECKPOINT, LOG, Recipe, evaluate, sample_batch, train
from causalvae_kernels.models.loading import load_vae


def clips(count=2):
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(0, 256, (40, 3, 72, 90), dtype=torch.uint8, generator=generator) for _ in range(count)
    ]


@pytest.fixture
def tiny(monkeypatch):
    """Clips of noise, a model of a few channels, crops of 8 pixels."""
    config = dict(training.CONFIG, block_out_channels=(4, 4, 8), latent_channels=4)
    monkeypatch.setattr(training, "CONFIG", config)
    monkeypatch.setattr(training, "_CROPS", ((8, 2), (12, 1)))
    monkeypatch.setattr(training, "load_clip", lambda name: clips(1)[0][:, :, :16, :16])
    monkeypatch.setattr(training.evaluate, "__defaults__", ((0,),))


def test_a_batch_depends_on_seed_and_step_alone():
    recipe = Recipe(seed=5)
    first = sample_batch(clips(), 7, recipe)
    torch.manual_seed(1)
    assert torch.equal(sample_batch(clips(), 7, recipe), first)
    others = [sample_batch(clips(), 8, recipe), sample_batch(clips(), 7, Recipe(seed=6))]
    assert all(other.shape != first.shape or not torch.equal(other, first) for other in others)


def test_batches_are_clips_of_seventeen_frames_or_images():
    shapes = set()
    for step in range(60):
        batch = sample_batch(clips(), step, Recipe(image_share=0.3))
        assert batch.dtype == torch.float32
        assert batch.abs().max() <= 1
        assert batch.std() > 0.05
        shapes.add(tuple(batch.shape[1:]))
    assert {shape[1] for shape in shapes} == {1, 17}
    assert {shape[2:] for shape in shapes} == {(32, 32), (48, 48), (64, 64)}
    assert all(sample_batch(clips(), step, Recipe(image_share=0.0)).shape[2] == 17 for step in range(10))


def test_a_stopped_run_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    recipe = Recipe(steps=5, warmup=2)
    seen = []
    whole = train(tmp_path / "whole", recipe, progress=lambda done, total, mse: seen.append((done, total)))
    assert seen == [(n, 5) for n in range(1, 6)]

    class Stop(Exception):
        pass

    def stop(done, total, mse):
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        train(tmp_path / "parts", recipe, save_every=2, progress=stop)
    assert torch.load(tmp_path / "parts" / CHECKPOINT, weights_only=True)["step"] == 2
    assert not (tmp_path / "parts" / training.WEIGHTS).exists()
    torch.manual_seed(99)
    seen.clear()
    parts = train(tmp_path / "parts", recipe, save_every=2, progress=lambda *args: seen.append(args[:2]))
    assert seen == [(3, 5), (4, 5), (5, 5)]
    expected, got = load_vae(whole).state_dict(), load_vae(parts).state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    lines = [json.loads(line) for line in (tmp_path / "whole" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [5]
    assert len(lines[0]["held_out"]["17"]) == 17 and len(lines[0]["held_out"]["16"]) == 16


def test_another_recipe_in_the_same_folder_is_refused(tiny, tmp_path):
    train(tmp_path, Recipe(steps=1))
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(InvalidInput, match="was made with .*'steps': 1.* another folder"):
        train(tmp_path, Recipe(steps=2))
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_run_can_begin_with_weights(tiny, tmp_path, monkeypatch):
    first = train(tmp_path / "first", Recipe(steps=3, warmup=1))
    second = train(tmp_path / "second", Recipe(steps=1, learning_rate=0.0), weights=first)
    expected, got = load_vae(first).state_dict(), load_vae(second).state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    monkeypatch.setitem(training.CONFIG, "latent_channels", 8)
    with pytest.raises(InvalidInput, match="another latent_channels; expected latent_channels=8"):
        train(tmp_path / "third", Recipe(steps=1), weights=first)
    assert not (tmp_path / "third" / CHECKPOINT).exists()


def test_training_learns(tiny, tmp_path):
    """The clips are noise: what can be learnt is their mean."""
    errors = []
    train(tmp_path, Recipe(steps=60, warmup=5), progress=lambda done, total, mse: errors.append(mse))
    assert sum(errors[-15:]) < 0.9 * sum(errors[:15])


def test_evaluation_leaves_the_model_in_training_mode_and_unswapped(tiny):
    vae = training._new_vae(0)
    video = clips(1)[0][:, :, :16, :16]
    errors = evaluate(vae, video)
    assert vae.training
    assert not any("forward" in module.__dict__ for module in vae.modules())
    with torch.no_grad():
        vae.eval()
        pixels = video[:17].float() / 255
        x = (pixels * 2 - 1).transpose(0, 1).unsqueeze(0)
        out = (vae.decode(vae.encode(x).latent_dist.mode()).sample[0].transpose(0, 1) + 1) / 2
    expected = (out - pixels).square().mean(dim=(1, 2, 3))
    assert errors["17"] == pytest.approx(expected.tolist(), rel=1e-3)


def test_the_command(tiny, tmp_path):
    from typer.testing import CliRunner

    from causalvae_kernels.cli import app

    def run(*arguments):
        return CliRunner().invoke(app, ["train", "--output", str(tmp_path / "run"), *arguments])

    result = run("--steps", "2", "--threads", "1", "--save-every", "1")
    assert result.exit_code == 0, result.output
    assert "written:" in result.stdout
    assert load_vae(tmp_path / "run" / training.WEIGHTS).config.latent_channels == 4
    assert run("--steps", "0").exit_code == 2
    assert "made with" in run("--steps", "3").stderr
