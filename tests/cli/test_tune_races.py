"""`tune` of the ops beside the convolution on this CPU: what is written is what `auto` goes by."""

import json

import pytest
import torch

from causalvae_kernels import explain, group_norm, upsample_conv
from causalvae_kernels.bench import tunable, tune_norms, tune_resampling
from causalvae_kernels.core import native
from causalvae_kernels.core.tuned import Tuned, read_record
from causalvae_kernels.ops.norms.measurements import GROUP_NORM
from causalvae_kernels.ops.upsample_conv import measurements

pytestmark = pytest.mark.skipif(native.why_no_cpu() is not None, reason="no native CPU module")
ISA = native.cpu_isa() if native.why_no_cpu() is None else None


def tune(run, op, *options):
    return run("tune", "--op", op, "--dtype", "float32", "--output", f"new/{ISA}.json", *options)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tune_norms, "CPU_SHAPES", ((1, 16, 1, 16, 16),))
    for name, value in (("_CHANNELS", (16,)), ("_SIZES", ((15, 18),)), ("_FRAMES", (1,))):
        monkeypatch.setattr(tune_resampling, name, value)
    monkeypatch.setattr(native, "why_incomparable", lambda isa: None)
    return monkeypatch


@pytest.mark.parametrize(
    ("op", "count"),
    [
        ("group_norm", 4),
        ("rms_norm", 4),
        ("spatial_norm", 4),
        ("upsample_conv", 8),  # two scales, two layouts, one frame in the kernel or three
        ("downsample_conv", 2),
    ],
)
def test_every_class_is_measured_once(op, count, small, run, folder):
    result = tune(run, op)
    assert result.code == 0, result.stderr
    record = read_record(folder / "new" / f"{ISA}.json")
    assert len({m.shape_class for m in record.measurements}) == len(record.measurements) == count
    assert {m.backend for m in record.measurements} == {"cpu"}
    assert f"0 measured now, {count} in" in tune(run, op, "--resume").stdout


def test_what_another_machine_measured_is_not_missing(small, run, folder):
    words = "float32 1x3x3 16->16, 1 frame of 256 pixels, upsampled 1x2x2"
    small.setattr(tunable.UPSAMPLE_TUNED, "folder", written(folder, 1.0, 2.0, words).folder)
    small.setattr(tunable.UPSAMPLE_TUNED, "_tables", {})
    result = tune(run, "upsample_conv", "--missing")
    assert "7 measured now, 7 in" in result.stdout
    record = read_record(folder / "new" / f"{ISA}.json")
    assert words not in {m.shape_class for m in record.measurements}
    assert "0 measured now, 7 in" in tune(run, "upsample_conv", "--missing").stdout


def written(folder, ours, default, shape_class):
    """Write a file with one measurement."""
    head = {"format": 1, "backend": "cpu", "default": "aten", "isa": native.cpu_isa(), "amx": False}
    row = {"class": shape_class, "shapes": "", "ms": ours, "default_ms": default, "rounds": 3}
    path = folder / f"{native.cpu_isa()}.json"
    path.write_text(json.dumps({**head, "machine": {}, "rows": [row]}))
    return Tuned(folder)


@pytest.mark.parametrize("faster", [True, False])
def test_auto_goes_by_the_table_of_a_norm(faster, folder, monkeypatch):
    table = written(folder, 1.0, 2.0 if faster else 1.0, "32-bit contiguous, 4096 elements")
    monkeypatch.setattr(native, "why_incomparable", lambda isa: None)
    monkeypatch.setattr(GROUP_NORM.tuned, "folder", table.folder)
    monkeypatch.setattr(GROUP_NORM.tuned, "_tables", {})
    x = torch.randn(1, 16, 1, 16, 16)
    assert explain(group_norm, x, 8).chosen == ("cpu" if faster else "aten")
    assert explain(group_norm, x[:, :, :, :4, :4], 8).chosen == "aten", "too small for any class"


def test_auto_upsamples_by_what_was_measured(folder, monkeypatch):
    words = "float32 1x3x3 16->16, 1 frame of 256 pixels, upsampled 1x2x2"
    table = written(folder, 1.0, 2.0, words)
    monkeypatch.setattr(native, "why_incomparable", lambda isa: None)
    monkeypatch.setattr(measurements, "TUNED", table)
    x, weight = torch.randn(1, 16, 1, 15, 18), torch.randn(16, 16, 1, 3, 3)
    assert explain(upsample_conv, x, weight).chosen == "cpu"
    assert explain(upsample_conv, x, weight, scale=(2, 2, 2)).chosen == "aten"
    trained = explain(upsample_conv, x, weight.requires_grad_())
    assert trained.chosen == "aten" and "these are being trained" in str(trained)
