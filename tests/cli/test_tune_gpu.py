"""`tune --device cuda`, its GPU played by the CPU: the best way is recorded, wrong ones never."""

import functools
import sys
from dataclasses import replace

import pytest
import torch

from causalvae_kernels import FrameBuffer, causal_conv3d, explain
from causalvae_kernels.bench import (
    race,
    tunable,
    tune_gpu_conv,
    tune_gpu_pad,
    tune_gpu_resampling,
    tune_norms,
)
from causalvae_kernels.core import native
from causalvae_kernels.core.tuned import Tuned, read_record
from causalvae_kernels.ops.causal_conv3d.backends.triton.tiles import Tile, configurations
from causalvae_kernels.ops.causal_pad3d import measurements
from causalvae_kernels.workloads import (
    FULL_SIZE,
    FULL_SIZE_DOWNSAMPLE,
    FULL_SIZE_UPSAMPLE,
    DownsampleCase,
    NormCase,
    UpsampleCase,
    Workload,
    make_downsample_call,
    make_norm_call,
    make_upsample_call,
)

TINY = (Workload("16x8-3x30x40", 16, 8, 3, 30, 40), Workload("8x16-2x30x32", 8, 16, 2, 30, 32))
MODULE = "causalvae_kernels.cli.tune_races"


def way(call, factor, plan, repeats):
    """Compute the convolution `repeats` times, so that its speed is known."""

    def run():
        for _ in range(repeats):
            y = causal_conv3d(**call, backend="reference")
        return factor * y

    return race.Way("triton", run, plan)


@pytest.fixture
def on_the_cpu(monkeypatch):
    module = sys.modules[MODULE]
    for name in list(FULL_SIZE):
        monkeypatch.delitem(FULL_SIZE, name)
    for workload in TINY:
        monkeypatch.setitem(FULL_SIZE, workload.name, workload)
    monkeypatch.setattr(sys.modules["causalvae_kernels.cli.tune"], "gpu", lambda: torch.device("cpu"))
    monkeypatch.setitem(tunable.TUNABLE, "cpu", tunable.TUNABLE["cuda"])
    for place in (module, race):
        monkeypatch.setattr(place, "architecture_of", lambda _: "sm90")
    monkeypatch.setattr(race, "flush_cache", lambda _: None)
    ways = lambda call: [way(call, 1, {"block_m": 64}, 20), way(call, 1, {"block_m": 128}, 1)]  # noqa: E731
    monkeypatch.setattr(tune_gpu_conv, "ways", ways)
    return monkeypatch


def tune(run, *options, op="causal_conv3d"):
    fixed = ("--device", "cuda", "--op", op, "--dtype", "float32", "--output", "sm90.json")
    return run("tune", *fixed, *options)


def test_the_best_way_is_recorded_with_its_plan(on_the_cpu, run, folder):
    result = tune(run)
    assert result.code == 0, result.stderr
    record = read_record(folder / "sm90.json")
    assert {m.shape_class for m in record.measurements} == {
        tune_gpu_conv.class_of(workload, torch.float32) for workload in TINY
    }
    assert all(m.plan == {"block_m": 128} and m.backend == "triton" for m in record.measurements)
    on_the_cpu.setattr("causalvae_kernels.core.tuned._other_gpu", lambda machine: None)
    classes = [tune_gpu_conv.class_of(TINY[0], torch.float32)]
    assert Tuned(folder).find("sm90", classes).plan == {"block_m": 128}


def test_a_wrong_way_is_named_and_never_recorded(on_the_cpu, run, folder):
    ways = lambda call: [way(call, 1, {"block_m": 64}, 20), way(call, 1.01, {"block_m": 7}, 1)]  # noqa: E731
    on_the_cpu.setattr(tune_gpu_conv, "ways", ways)
    result = tune(run)
    assert result.code == 1 and "block_m=7 differs from aten" in result.stderr
    assert all(m.plan == {"block_m": 64} for m in read_record(folder / "sm90.json").measurements)


def test_a_way_that_fails_is_named_and_the_others_are_measured(on_the_cpu, run, folder):
    def fail():
        raise RuntimeError("out of resources\nand much more")

    bad = race.Way("triton", fail, {"block_m": 7})
    on_the_cpu.setattr(tune_gpu_conv, "ways", lambda call: [bad, way(call, 1, {"block_m": 64}, 1)])
    result = tune(run)
    assert result.code == 1
    assert f"block_m=7 fails for {TINY[0].name} float32: RuntimeError: out of resources" in result.stderr
    assert [m.plan for m in read_record(folder / "sm90.json").measurements] == [{"block_m": 64}] * 2


def test_a_job_whose_tensors_do_not_fit_is_named_and_the_others_are_measured(on_the_cpu, run, folder):
    right = tune_gpu_conv._call

    def call(workload, *others):
        if workload is TINY[0]:
            raise torch.OutOfMemoryError("the memory of a made-up GPU")
        return right(workload, *others)

    on_the_cpu.setattr(tune_gpu_conv, "_call", call)
    result = tune(run)
    assert result.code == 1 and f"{TINY[0].name} float32 cannot be measured: OutOfM" in result.stderr
    (found,) = read_record(folder / "sm90.json").measurements
    assert found.shape_class == tune_gpu_conv.class_of(TINY[1], torch.float32)


def test_where_all_ways_are_wrong_the_others_are_measured(on_the_cpu, run, folder):
    def ways(call):
        return [way(call, 2 if call["x"].shape[1] == TINY[0].in_channels else 1, None, 1)]

    on_the_cpu.setattr(tune_gpu_conv, "ways", ways)
    result = tune(run)
    assert result.code == 1 and f"for {TINY[0].name}" in result.stderr
    (found,) = read_record(folder / "sm90.json").measurements
    assert found.shape_class == tune_gpu_conv.class_of(TINY[1], torch.float32)


def test_a_stopped_run_is_completed(on_the_cpu, run, folder):
    assert tune(run).code == 0
    record = read_record(folder / "sm90.json")
    (folder / "sm90.json").write_text(replace(record, measurements=record.measurements[:1]).text())
    result = tune(run, "--resume")
    assert "1 measured now, 2 in" in result.stdout, result.stderr
    again = read_record(folder / "sm90.json")
    assert record.measurements[0] in again.measurements and len(again.measurements) == 2


needs_native = pytest.mark.skipif(native.why_no_cpu() is not None, reason=str(native.why_no_cpu()))


@needs_native
def test_padding_is_measured_by_size_and_auto_goes_by_it(on_the_cpu, run, folder):
    """The backend `cpu` races in place of Triton; both layouts, in place and copied, each class once."""
    on_the_cpu.setattr(tune_gpu_pad, "_BACKENDS", ("cpu", "cuda"))
    result = tune(run, op="causal_pad3d")
    assert result.code == 0, result.stderr
    found = {m.shape_class: m for m in read_record(folder / "sm90.json").measurements}
    assert set(found) == {
        f"32-bit {layout}{variant}, {elements} elements"
        for layout in ("channels_last_3d", "contiguous")
        for variant in (" in place", "")
        for elements in (16384, 65536)
    }
    assert all(m.backend == "cpu" and m.default == "aten" and m.plan is None for m in found.values())
    on_the_cpu.setattr("causalvae_kernels.core.tuned._other_gpu", lambda machine: None)
    on_the_cpu.setattr("causalvae_kernels.core.size_class.architecture_of", lambda device: "sm90")
    on_the_cpu.setattr(measurements, "TUNED", Tuned(folder))
    answer = explain("causal_pad3d", torch.empty(1, 16, 3, 30, 40), 2)
    measured = found["32-bit contiguous, 65536 elements"]
    assert answer.chosen == ("cpu" if measured.faster else "aten") and measured.figures in str(answer)


@needs_native
@pytest.mark.parametrize("in_place", [False, True])
def test_padding_that_writes_nothing_is_wrong(on_the_cpu, run, folder, in_place):
    """What an earlier way has left in the buffer must not pass for a result."""
    name = "causal_pad3d_" if in_place else "causal_pad3d"
    right = getattr(tune_gpu_pad, name)

    def lazy(*arguments, backend, **keywords):
        if backend == "aten":
            return right(*arguments, backend=backend, **keywords)
        return None if in_place else torch.zeros_like(right(*arguments, backend="aten", **keywords))

    on_the_cpu.setattr(tune_gpu_pad, name, functools.wraps(right)(lazy))
    on_the_cpu.setattr(tune_gpu_pad, "_BACKENDS", ("cpu",))
    result = tune(run, op="causal_pad3d")
    assert result.code == 1 and "cpu differs from aten by" in result.stderr
    classes = [m.shape_class for m in read_record(folder / "sm90.json").measurements]
    assert classes and all(("in place" in c) is not in_place for c in classes)


@needs_native
@pytest.mark.parametrize("op", ["group_norm", "spatial_norm", "rms_norm"])
def test_norms_are_measured_by_size_and_auto_goes_by_it(on_the_cpu, run, folder, op):
    on_the_cpu.setattr(tune_norms, "_BACKENDS", ("cpu",))
    result = tune(run, op=op)
    assert result.code == 0, result.stderr
    found = {m.shape_class: m for m in read_record(folder / "sm90.json").measurements}
    assert set(found) == {
        f"32-bit {layout}{variant}, {elements} elements"
        for layout in ("channels_last_3d", "contiguous")
        for variant in (" into a buffer", "")
        for elements in (16384, 65536)
    }
    on_the_cpu.setattr("causalvae_kernels.core.tuned._other_gpu", lambda machine: None)
    on_the_cpu.setattr("causalvae_kernels.core.size_class.architecture_of", lambda device: "sm90")
    on_the_cpu.setattr(tunable.TUNABLE["cuda"][op].tuned, "folder", folder)
    on_the_cpu.setattr(tunable.TUNABLE["cuda"][op].tuned, "_tables", {})
    call = make_norm_call(op, NormCase("call", (1, 16, 3, 30, 40), 8, (3, 15, 20)), torch.float32, 0)
    into = explain(op, **call, out=FrameBuffer(torch.empty(1, 16, 5, 30, 40), 2))
    for answer, variant in ((explain(op, **call), ""), (into, " into a buffer")):
        measured = found[f"32-bit contiguous{variant}, 65536 elements"]
        assert answer.chosen == ("cpu" if measured.faster else "aten") and measured.figures in str(answer)


RESAMPLING = {
    "upsample_conv": (
        "FULL_SIZE_UPSAMPLE",
        UpsampleCase("up", (1, 16, 2, 32, 33), 8, scale=(2, 2, 2)),
        "1x3x3 16->8, 2+ frames of 1024 pixels, upsampled 2x2x2 channels_last_3d",
    ),
    "downsample_conv": (
        "FULL_SIZE_DOWNSAMPLE",
        DownsampleCase("down", (1, 16, 2, 64, 66), 8, True),
        "1x3x3 stride 1x2x2 16->8, 1 frame of 1024 pixels, averaged",
    ),
}


@pytest.mark.parametrize("op", RESAMPLING)
def test_resampling_convolutions_are_measured_by_class(on_the_cpu, run, folder, op):
    """The reference, slowed down, races in place of Triton's tiles; a wrong tile is named."""
    cases, case, words = RESAMPLING[op]

    def ways(name, call):
        def compute(factor, repeats):
            for _ in range(repeats):
                y = tune_gpu_resampling._OPS[name](**call, backend="reference")
            return factor * y

        plans = ((64, 1, 9), (128, 1, 1), (7, 1.1, 1))
        return [race.Way("triton", functools.partial(compute, f, n), {"block_m": m}) for m, f, n in plans]

    on_the_cpu.setattr(tune_gpu_resampling, cases, (case,))
    on_the_cpu.setattr(tune_gpu_resampling, "ways", ways)
    result = tune(run, op=op)
    assert result.code == 1 and "block_m=7 differs from aten" in result.stderr
    (found,) = read_record(folder / "sm90.json").measurements
    assert (found.shape_class, found.plan) == (f"float32 {words}", {"block_m": 128})


def test_every_full_size_resampling_convolution_has_a_class_of_its_own():
    for jobs, cases in (
        (tune_gpu_resampling.upsample_jobs, FULL_SIZE_UPSAMPLE),
        (tune_gpu_resampling.downsample_jobs, FULL_SIZE_DOWNSAMPLE),
    ):
        assert len({job.shape_class for job in jobs([torch.bfloat16])}) == len(cases)


@pytest.mark.parametrize("op", RESAMPLING)
def test_the_ways_of_a_resampling_convolution_are_tiles(monkeypatch, op):
    monkeypatch.setattr(tune_gpu_resampling, "usable", lambda backends, *_, **__: backends)
    make = make_upsample_call if op == "upsample_conv" else make_downsample_call
    found = tune_gpu_resampling.ways(op, make(RESAMPLING[op][1], torch.bfloat16, 0))
    assert {way.backend for way in found} == {"triton"}
    assert [Tile(**way.plan) for way in found] == list(configurations(90, torch.bfloat16))


def test_one_file_holds_one_op(on_the_cpu, refuse, folder):
    sentence = refuse("tune", "--device", "cuda", "--output", "sm90.json")
    assert "one file for causal_conv3d, causal_pad3d" in sentence
    assert "got 'conv'" in refuse("tune", "--device", "cuda", "--op", "conv")


def test_padding_is_not_measured_on_a_cpu(refuse):
    assert "got 'causal_pad3d'" in refuse("tune", "--op", "causal_pad3d")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_sentence(run, folder):
    result = run("tune", "--device", "cuda")
    assert result.code != 0 and "torch sees no GPU here" in result.stderr
