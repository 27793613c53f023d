"""`bench --device cuda`, its GPU played by the CPU: rows, a record that is completed, what is refused."""

import json
import sys

import pytest
import torch

from benchmarks import gpu
from causalvae_kernels.bench import providers
from causalvae_kernels.core.errors import BackendUnavailable
from causalvae_kernels.workloads import FULL_SIZE, Workload

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:causalvae_kernels runs without its native CPU kernels")

TINY = (Workload("16x8-3x9x10", 16, 8, 3, 9, 10), Workload("8x16-2x7x6", 8, 16, 2, 7, 6))
MODULE = "causalvae_kernels.cli.bench_gpu"


@pytest.fixture
def on_the_cpu(monkeypatch):
    """The CPU as the GPU, its backend `cpu` among those of a GPU."""
    module = sys.modules[MODULE]
    for workload in TINY:
        monkeypatch.setitem(FULL_SIZE, workload.name, workload)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(module, "_gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr(module, "device_words", lambda _: "a made-up GPU")
    monkeypatch.setattr(module, "flush_cache", lambda _: None)
    monkeypatch.setattr(module, "gpu_limits", lambda _: {"fma_gflops": 100.0, "copy_gbps": 10.0})
    references = dict.fromkeys(("aten", "cpu"), "diffusers channels_last_3d")
    monkeypatch.setattr(providers, "GPU_BACKENDS", ("aten", "cpu", "cuda"))
    monkeypatch.setattr(module, "GPU_REFERENCES", references)


def bench(run, *options):
    return run("bench", "--device", "cuda", "--rounds", "2", "--dtype", "float32", *options)


def test_rows_of_every_backend_that_can_run(on_the_cpu, run, folder):
    result = bench(run, "--workload", TINY[0].name, "--json", "gpu.json", "--png", "gpu.png")
    assert result.code == 0, result.stderr
    assert "a made-up GPU" in result.stdout and "parity holds" in result.stdout
    (row,) = json.loads((folder / "gpu.json").read_text())["rows"]
    assert list(row["providers"]) == ["diffusers", "diffusers channels_last_3d", "aten", "cpu"]
    assert set(row["speedup_p50"]) == {"aten", "cpu"}
    assert (folder / "gpu.png").read_bytes().startswith(b"\x89PNG")


def test_a_record_is_completed(on_the_cpu, run, folder):
    assert bench(run, "--workload", TINY[0].name, "--json", "gpu.json").code == 0
    first = json.loads((folder / "gpu.json").read_text())["rows"][0]
    both = [word for workload in TINY for word in ("--workload", workload.name)]
    assert bench(run, *both, "--json", "gpu.json", "--resume").code == 0
    rows = json.loads((folder / "gpu.json").read_text())["rows"]
    assert [row["workload"] for row in rows] == [workload.name for workload in TINY]
    assert rows[0] == first
    pads = bench(run, *both, "--op", "causal_pad3d", "--json", "gpu.json", "--resume")
    assert pads.code == 0, pads.stderr
    rows = json.loads((folder / "gpu.json").read_text())["rows"]
    assert [row["op"] for row in rows] == ["causal_conv3d"] * 2 + ["causal_pad3d"] * 2
    assert list(rows[2]["providers"]) == [
        "torch.cat",
        "aten in place",
        "aten copied",
        "cpu in place",
        "cpu copied",
    ]
    assert rows[2]["bytes_ratio"] == 2.5  # 3 + 2 frames against 2


def test_the_table_is_in_the_order_of_the_workloads_whatever_was_measured_first(on_the_cpu, run, folder):
    assert bench(run, "--workload", TINY[1].name, "--json", "gpu.json").code == 0
    both = [word for workload in TINY for word in ("--workload", workload.name)]
    printed = bench(run, *both, "--json", "gpu.json", "--resume").stdout
    assert 0 < printed.index(TINY[0].name) < printed.index(TINY[1].name)


def test_make_bench_gpu_compiles_a_few_workloads_and_measures_all():
    first, second, third = gpu.runs()
    assert first == ("causal_pad3d", [])
    named = [word for word in second[1] if not word.startswith("--")]
    assert set(named) <= set(FULL_SIZE) and len(named) == 4 and "--compiled" in second[1]
    assert third == (second[0], []) == ("causal_conv3d", []), "without names, all of them"


def test_a_record_of_another_machine_is_not_completed(on_the_cpu, run, folder):
    assert bench(run, "--workload", TINY[0].name, "--json", "gpu.json").code == 0
    record = json.loads((folder / "gpu.json").read_text())
    record["machine"]["gpus"] = [{"name": "another"}]
    (folder / "gpu.json").write_text(json.dumps(record))
    result = bench(run, "--workload", TINY[0].name, "--json", "gpu.json", "--resume")
    assert result.code != 0 and "was measured with gpus" in result.stderr


def test_a_wrong_provider_is_named_and_its_row_left_out(on_the_cpu, run, folder, monkeypatch):
    right = providers.causal_conv3d

    def wrong(*arguments, backend=None, **keywords):
        result = right(*arguments, backend=backend, **keywords)
        bad = backend == "cpu" and keywords["weight"].shape[0] == TINY[0].out_channels
        return (result[0] + 1, result[1]) if bad else result

    monkeypatch.setattr(providers, "causal_conv3d", wrong)
    both = [word for workload in TINY for word in ("--workload", workload.name)]
    result = bench(run, *both, "--json", "gpu.json")
    assert result.code == 1 and f"cpu, {TINY[0].name}" in result.stderr
    assert [r["workload"] for r in json.loads((folder / "gpu.json").read_text())["rows"]] == [TINY[1].name]


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, Exception, BackendUnavailable])
def test_a_provider_that_fails_is_named_and_the_others_are_measured(
    on_the_cpu, run, folder, monkeypatch, kind
):
    right = providers.causal_conv3d

    def failing(*arguments, backend=None, **keywords):
        if backend == "cpu" and keywords["weight"].shape[0] == TINY[0].out_channels:
            raise kind("of this kernel\nand much more")
        return right(*arguments, backend=backend, **keywords)

    monkeypatch.setattr(providers, "causal_conv3d", failing)
    both = [word for workload in TINY for word in ("--workload", workload.name)]
    result = bench(run, *both, "--json", "gpu.json")
    assert result.code == 1, result.exception
    assert f"{TINY[0].name} float32: {kind.__name__}: " in result.stderr and "much more" not in result.stderr
    assert [r["workload"] for r in json.loads((folder / "gpu.json").read_text())["rows"]] == [TINY[1].name]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_sentence(run, folder):
    result = run("bench", "--device", "cuda")
    assert result.code != 0 and "torch sees no GPU here" in result.stderr
