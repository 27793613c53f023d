"""The examples run, and do what they say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the sources of the package are not here", allow_module_level=True)


@pytest.fixture(autouse=True)
def _random_state():
    """Examples seed the global generator; other tests must not see it."""
    with torch.random.fork_rng(devices=[]):
        yield


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_swap_and_compare(capsys):
    load("swap_and_compare").main()
    said = capsys.readouterr().out
    assert re.search(r"AutoencoderKLCogVideoX: \d+ modules replaced", said)
    assert float(re.search(r"largest difference: (\S+)", said)[1]) > 0, "the swapped model is another one"


def test_any_frames(capsys):
    load("any_frames").main()
    said = capsys.readouterr().out
    assert "13 frames as shipped: 16 come back" in said
    assert "16 frames → 17" in said and "nearest valid counts: 9 below, 17 above" in said
    for count in (2, 13, 16):
        assert re.search(rf"{count} frames adapted: \d+ latents, {count} come back", said)


def test_stream_file(tmp_path, capsys):
    pytest.importorskip("av")
    from causalvae_kernels.data.video import read_frames

    example = load("stream_file")
    source, target = example.made_clip(tmp_path / "in.mp4", 14), tmp_path / "out.mp4"
    example.main([str(source), str(target)])
    assert f"14 frames written to {target}" in capsys.readouterr().out
    before, after = read_frames(source, 14)[0].float(), read_frames(target, 14)[0].float()
    assert before.shape == after.shape
    assert (before - after).square().mean() < (before - before.mean()).square().mean() / 4, (
        "the same pictures"
    )


def test_finetune(capsys):
    losses = load("finetune").main(steps=4)
    assert losses[-1] < losses[0]
    assert "evaluation: MSE" in capsys.readouterr().out


def test_compile_op(capsys):
    load("compile_op").main("aot_eager")
    assert "decoder: swapped and compiled" in capsys.readouterr().out


def test_original_code(capsys):
    load("original_code").main()
    said = capsys.readouterr().out
    # What is left are images' convolutions, inside of a decoder that runs as a whole.
    assert re.search(r"Model: \d+ modules replaced", said)
    assert "decoder (Decoder)" not in said and "largest difference" in said


def test_every_example_is_listed_and_tested():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"[{path.name}]({path.name})" in text, path.name
