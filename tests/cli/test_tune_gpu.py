"""`tune --device cuda`, its GPU played by the CPU: the best way is recorded, wrong ones never."""

import sys
from dataclasses import replace

import pytest
import torch

from causalvae_kernels import causal_conv3d
from causalvae_kernels.bench import tune_gpu
from causalvae_kernels.core.tuned import Tuned, read_record
from causalvae_kernels.workloads import FULL_SIZE, Workload

TINY = (Workload("16x8-3x30x40", 16, 8, 3, 30, 40), Workload("8x16-2x30x32", 8, 16, 2, 30, 32))
MODULE = "causalvae_kernels.cli.tune_gpu"


def way(call, factor, plan, repeats):
    """Compute the convolution `repeats` times, so that its speed is known."""

    def run():
        for _ in range(repeats):
            y = causal_conv3d(**call, backend="reference")
        return factor * y

    return tune_gpu.Way("triton", plan, run)


@pytest.fixture
def on_the_cpu(monkeypatch):
    module = sys.modules[MODULE]
    for name in list(FULL_SIZE):
        monkeypatch.delitem(FULL_SIZE, name)
    for workload in TINY:
        monkeypatch.setitem(FULL_SIZE, workload.name, workload)
    monkeypatch.setattr(module, "_gpu", lambda: torch.device("cpu"))
    for place in (module, tune_gpu):
        monkeypatch.setattr(place, "gpu_architecture", lambda _: "sm90")
    monkeypatch.setattr(tune_gpu, "flush_cache", lambda _: None)
    ways = lambda call: [way(call, 1, {"block_m": 64}, 20), way(call, 1, {"block_m": 128}, 1)]  # noqa: E731
    monkeypatch.setattr(tune_gpu, "ways", ways)
    return monkeypatch


def tune(run, *options):
    return run("tune", "--device", "cuda", "--dtype", "float32", "--output", "sm90.json", *options)


def test_the_best_way_is_recorded_with_its_plan(on_the_cpu, run, folder):
    result = tune(run)
    assert result.code == 0, result.stderr
    record = read_record(folder / "sm90.json")
    assert {m.shape_class for m in record.measurements} == {
        tune_gpu.class_of(workload, torch.float32) for workload in TINY
    }
    assert all(m.plan == {"block_m": 128} and m.backend == "triton" for m in record.measurements)
    on_the_cpu.setattr("causalvae_kernels.core.tuned._other_gpu", lambda machine: None)
    classes = [tune_gpu.class_of(TINY[0], torch.float32)]
    assert Tuned(folder).find("sm90", classes).plan == {"block_m": 128}


def test_a_wrong_way_is_named_and_never_recorded(on_the_cpu, run, folder):
    ways = lambda call: [way(call, 1, {"block_m": 64}, 20), way(call, 1.01, {"block_m": 7}, 1)]  # noqa: E731
    on_the_cpu.setattr(tune_gpu, "ways", ways)
    result = tune(run)
    assert result.code == 1 and "block_m=7 differs from aten" in result.stderr
    assert all(m.plan == {"block_m": 64} for m in read_record(folder / "sm90.json").measurements)


def test_a_stopped_run_is_completed(on_the_cpu, run, folder):
    assert tune(run).code == 0
    record = read_record(folder / "sm90.json")
    (folder / "sm90.json").write_text(replace(record, measurements=record.measurements[:1]).text())
    result = tune(run, "--resume")
    assert "1 measured now, 2 in" in result.stdout, result.stderr
    again = read_record(folder / "sm90.json")
    assert record.measurements[0] in again.measurements and len(again.measurements) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_sentence(run, folder):
    result = run("tune", "--device", "cuda")
    assert result.code != 0 and "torch sees no GPU here" in result.stderr
