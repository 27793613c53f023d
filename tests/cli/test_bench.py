"""`bench`: table, record and plot of tiny workloads, and every bad input by name."""

import json
import sys

import pytest
import torch

from causalvae_kernels.workloads import WORKLOADS, Workload

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:causalvae_kernels runs without its native CPU kernels")

TINY = Workload("6x8-3x9x10", 6, 8, 3, 9, 10)
FRAMES = Workload("6x8-3x9x10-1x3x3", 6, 8, 3, 9, 10, (1, 3, 3))
MODULE = "causalvae_kernels.cli.bench"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Two workloads, and limits that take no time."""
    for workload in (TINY, FRAMES):
        monkeypatch.setitem(WORKLOADS, workload.name, workload)
    measured = {"fma_gflops": 100.0, "copy_gbps": 10.0}
    monkeypatch.setattr(sys.modules[MODULE], "measure_limits", lambda threads: measured)


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_convolutions(run, folder):
    pytest.importorskip("matplotlib")
    threads = torch.get_num_threads()
    (folder / "a.json").write_text("old")
    result = run(
        *("bench", "--workload", TINY.name, "--workload", FRAMES.name, "--workload", TINY.name),
        *("--rounds", 2, "--threads", 2, "--backend", "aten", "--json", "a.json", "--png", "a.png"),
    )
    assert result.code == 0, result.stderr
    assert torch.get_num_threads() == threads
    for words in (
        TINY.name,
        "bfloat16",
        "ours against diffusers: ",
        "geometric mean of 4",
        "parity holds for all",
        "backend of ours: aten; multiply-adds at most: 100 GFLOP/s",
    ):
        assert words in result.stdout
    assert files_in(folder) == ["a.json", "a.png"]
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "a.json").read_text())
    assert record["limits"] == {"2": {"fma_gflops": 100.0, "copy_gbps": 10.0}}
    names = [(row["workload"], row["dtype"]) for row in record["rows"]]
    assert names == [(w.name, d) for d in ("float32", "bfloat16") for w in (TINY, FRAMES)]
    for row in record["rows"]:
        assert row["threads"] == 2 and row["backend"] == "aten"
        assert set(row["speedup_p50"]) == {"ours", "ours channels_last_3d"}
        for provider in row["providers"].values():
            assert provider["samples"] == 2 and 0 < provider["relative_error"] < 1e-2
            assert 0 < provider["p20_ms"] <= provider["p50_ms"] <= provider["p80_ms"]


def test_paddings(run, folder):
    result = run(
        *("bench", "--op", "causal_pad3d", "--workload", TINY.name, "--dtype", "bfloat16"),
        *("--rounds", 1, "--json", "pad.json"),
    )
    assert result.code == 0, result.stderr
    assert "ours against torch.cat: " in result.stdout and "equal bits" in result.stdout
    assert "bytes that torch.cat moves against ours: 2.50×" in result.stdout
    (row,) = json.loads((folder / "pad.json").read_text())["rows"]
    assert (row["op"], row["dtype"], row["bytes_ratio"]) == ("causal_pad3d", "bfloat16", 2.5)


def test_all_workloads_of_a_padding_are_those_that_have_one(monkeypatch):
    chosen = sys.modules[MODULE]._chosen("causal_pad3d", ["all"], WORKLOADS)
    assert [w.name for w in chosen] == [n for n, w in WORKLOADS.items() if w.kernel_size[0] > 1]
    assert len(sys.modules[MODULE]._chosen("causal_conv3d", ["all"], WORKLOADS)) == len(WORKLOADS)


def test_the_floors_of_a_gpu_that_is_not_here(run, folder):
    result = run("bench", "--model", "h200", "--workload", "256x256-8x240x360")
    assert result.code == 0, result.stderr
    assert "790 TFLOP/s" in result.stdout and "Nothing was timed" in result.stdout
    # 2 * 256 * 256 * 27 * 8 * 240 * 360 operations at 790e12 a second
    assert "3.096" in result.stdout and "operations" in result.stdout
    pad = run("bench", "--model", "h200", "--op", "causal_pad3d", "--workload", "256x256-8x240x360")
    assert "in place" in pad.stdout and "copied" in pad.stdout


BAD_INPUT = {
    "unknown GPU": (["--model", "b300"], "--model: got 'b300', expected one of h200"),
    "unknown op": (["--op", "abacus"], "--op: got 'abacus', expected one of causal_conv3d, causal_pad3d"),
    "unknown workload": (["--workload", "1x1"], "--workload: got '1x1', expected all or one of 128x128-9x60"),
    "unknown dtype": (["--dtype", "int8"], "--dtype: got 'int8', expected one of float32"),
    "unknown backend": (["--backend", "x"], "--backend: got 'x', expected one of auto"),
    "no threads": (["--threads", "0"], "--threads: got 0, expected at least 1"),
    "no rounds": (["--rounds", "0"], "--rounds: got 0, expected at least 1"),
    "nothing to pad": (
        ["--op", "causal_pad3d", "--workload", FRAMES.name],
        f"--workload: got '{FRAMES.name}', whose kernel of one frame",
    ),
    "record that is a folder": (["--json", "."], "--json: . is a folder, expected a file"),
    "record in no folder": (["--json", "no/a.json"], "--json: no is no folder, expected one that exists"),
    "plot in no folder": (["--png", "no/a.png"], "--png: no is no folder"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(refuse, folder, case):
    arguments, sentence = BAD_INPUT[case]
    assert sentence in refuse("bench", *arguments)
    assert files_in(folder) == []


def test_a_provider_that_is_wrong_is_not_timed(refuse, folder, monkeypatch):
    module = sys.modules["causalvae_kernels.bench.providers"]
    right = module.causal_conv3d

    def wrong(*arguments, **keywords):
        y, state = right(*arguments, **keywords)
        return y * 1.01, state

    monkeypatch.setattr(module, "causal_conv3d", wrong)
    monkeypatch.setattr(sys.modules[MODULE], "time_providers", None)
    sentence = refuse("bench", "--workload", TINY.name, "--dtype", "float32", "--json", "a.json")
    assert f"no timing without parity: ours, {TINY.name} float32: error" in sentence
    assert files_in(folder) == []


def test_torch_compile_that_cannot_compile_is_told(refuse, folder, monkeypatch):
    def broken(module):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda module, **options: broken)
    sentence = refuse("bench", "--workload", TINY.name, "--compiled", "--json", "a.json")
    assert "torch.compile cannot compile diffusers' module here (no compiler)" in sentence
    assert files_in(folder) == []


def test_a_full_disk_leaves_nothing(run, folder, monkeypatch):
    pytest.importorskip("matplotlib")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules[MODULE], "plot_record", fail)
    arguments = ("--workload", TINY.name, "--rounds", 1, "--dtype", "float32")
    result = run("bench", *arguments, "--json", "a.json", "--png", "a.png")
    assert result.code == 1 and "error: [Errno 28] No space left on device" in result.stderr
    assert files_in(folder) == []
