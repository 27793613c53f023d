"""`plan`: the table, the JSON, and what is refused."""

import json

import pytest

pytest.importorskip("diffusers")

SMALL = {
    "_class_name": "AutoencoderKLCogVideoX",
    "block_out_channels": [16, 32, 48, 48],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_height": 96,
    "sample_width": 80,
}
# Two by two tiles of 40x48, which overlap by whole latents.
CLIP = ("--frames", "1", "--size", "56x64", "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def model_folder(tmp_path):
    """A folder with a configuration and no weights."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(SMALL))
    return str(tmp_path)


def test_json_and_verdicts(run, model_folder):
    done = run("plan", model_folder, *CLIP, "--step", "decode", "--json", "--available", "100000")
    assert done.code == 0, done.stderr
    facts = json.loads(done.stdout)
    (plan,) = facts["plans"]
    assert facts["swapped"]
    assert plan["shape"] == [1, 16, 1, 8, 7]
    assert (plan["verdict"], plan["loaded"]) == ("untiled", False)
    assert plan["needed"] == plan["untiled"] + plan["packed"] + plan["parameters"]
    assert 0 < plan["tiled"] < plan["untiled"]


def test_table(run, model_folder):
    done = run("plan", model_folder, *CLIP, "--step", "encode", "--unswapped", "--available", "1")
    assert done.code == 0, done.stderr
    for words in ("as diffusers runs it", "parameters", "in one piece", "tiling", "encode: does not fit"):
        assert words in done.stdout


def test_tiles_that_give_another_size(run, tmp_path):
    # Tiles of 4 latents, a sixth of which they are to overlap.
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "sample_height": 64}))
    done = run("plan", str(tmp_path), *CLIP, "--step", "decode", "--unswapped", "--available", "1")
    assert done.code == 0, done.stderr
    for words in ("not supported", "with tiling as it is set gives the shape", "decode: does not fit"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "expected a folder or --family"),
        (("--family", "nobody"), "--family: got 'nobody'"),
        (("--family", "cogvideox", "--memory", "least"), "--memory"),
        (("--family", "cogvideox", "--size", "72"), "--size"),
        (("--family", "cogvideox", "--device", "tpu"), "--device"),
        (("--family", "wan", "--frames", "0"), "--frames"),
    ],
)
def test_refusals(refuse, arguments, words):
    assert words in refuse("plan", *arguments)


def test_a_folder_without_a_configuration(refuse, tmp_path):
    assert "config.json" in refuse("plan", str(tmp_path))
