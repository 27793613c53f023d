"""`traffic`: table and file of a small model, and every bad input by name."""

import json

import pytest

from causalvae_kernels.bench import hollow_run

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:causalvae_kernels runs without its native CPU kernels")

SMALL = ("traffic", "--widths", "small", "--frames", 9, "--size", "48x32")


@pytest.mark.parametrize("step", ["encode", "decode"])
def test_a_table_and_a_file(run, folder, step):
    (folder / "a.json").write_text("old")
    backends = ("--backend", "aten", "--backend", "triton", "--backend", "aten")
    result = run(*SMALL, "--step", step, "--dtype", "float32", *backends, "--json", "a.json")
    assert result.code == 0, result.stderr
    for words in (
        f"GB moved: {step}, small widths, 9 frames of 48x32, float32",
        "reference",
        "swapped, aten",
    ):
        assert words in result.stdout
    record = json.loads((folder / "a.json").read_text())
    assert {k: record[k] for k in ("step", "frames", "height", "width", "dtype")} == {
        "step": step,
        "frames": 9,
        "height": 32,
        "width": 48,
        "dtype": "float32",
    }
    assert list(record["traffic"]) == ["reference", "aten", "triton"]
    for counts in record["traffic"].values():
        rows = counts["operators"].values()
        assert counts["bytes"] == sum(row["read"] + row["written"] for row in rows)
        assert 0 < counts["bytes_besides_convolutions"] < counts["bytes"]
    assert "causal_conv3d 3x3x3" in record["traffic"]["triton"]["operators"]


def test_bad_input(refuse, tmp_path):
    assert "--step: got 'both'" in refuse("traffic", "--step", "both")
    assert "--widths: got '5b'" in refuse("traffic", "--widths", "5b")
    assert "--backend: got 'cuda'" in refuse("traffic", "--backend", "cuda")
    assert "--frames: got 0" in refuse("traffic", "--frames", 0)
    assert "--size: got '20x16', expected multiples of 8" in refuse("traffic", "--size", "20x16")
    assert "--dtype: got 'int8'" in refuse(*SMALL, "--dtype", "int8")
    assert "is a folder" in refuse(*SMALL, "--json", tmp_path)


def test_nothing_is_left_of_a_backend_that_was_assumed(run):
    before = {op.name: op.backends for op in hollow_run.all_ops()}
    assert run(*SMALL, "--backend", "triton").code == 0
    assert {op.name: op.backends for op in hollow_run.all_ops()} == before
