"""Shape classes of `causal_conv3d`, and the choice that `auto` makes by measurements."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import causalvae_kernels
from causalvae_kernels import causal_conv3d, explain, use_backend, use_packed_budget
from causalvae_kernels.bench.tunable import TUNABLE
from causalvae_kernels.core import native, tuned
from causalvae_kernels.core.errors import BadMeasurements
from causalvae_kernels.core.op import op_named
from causalvae_kernels.core.tuned import Measurement, Record, Tuned
from causalvae_kernels.ops.causal_conv3d import measurements
from causalvae_kernels.ops.causal_conv3d.backends.cpu import Packing
from causalvae_kernels.ops.causal_conv3d.backends.triton import tuned_tile
from causalvae_kernels.ops.causal_conv3d.backends.triton.tiles import Tile
from causalvae_kernels.ops.causal_conv3d.measurements import channel_class, shape_classes

OP = op_named("causal_conv3d")
CLASS = "{dtype} 3x3x3 16->32, {frames} of {pixels} pixels"
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (1, "few"),
        (7, "few"),
        (8, "16"),
        (16, "16"),
        (22, "16"),
        (23, "32"),
        (45, "32"),
        (46, "64"),
        (90, "64"),
        (91, "128"),
        (96, "128"),
        (181, "128"),
        (182, "256"),
        (362, "256"),
        (363, "512+"),
        (512, "512+"),
        (4096, "512+"),
    ],
)
def test_channels(channels, expected):
    assert channel_class(channels) == expected


def test_a_class_in_words_its_own_first_then_smaller_frames():
    assert shape_classes(torch.bfloat16, (1, 3, 1, 10, 15), (100, 3, 1, 3, 3)) == (
        "bfloat16 1x3x3 few->128, 1 frame of 256 pixels",
        "bfloat16 1x3x3 few->128, 1 frame of 64 pixels",
        "bfloat16 1x3x3 few->128, 1 frame of 16 pixels",
    )
    strided = shape_classes(torch.float32, (1, 512, 2, 256, 256), (512, 512, 1, 3, 3), (1, 2, 2))
    assert strided[0] == "float32 1x3x3 stride 1x2x2 512+->512+, 2+ frames of 16384+ pixels"
    assert len(strided) == len(measurements.PIXELS)


def test_frames_are_those_of_the_output_over_the_batch():
    weight = (16, 16, 3, 3, 3)
    assert "1 frame " in shape_classes(torch.float32, (1, 16, 1, 8, 8), weight)[0]
    assert "2+ frames " in shape_classes(torch.float32, (2, 16, 1, 8, 8), weight)[0]
    assert "2+ frames " in shape_classes(torch.float32, (1, 16, 3, 8, 8), weight)[0]
    # A buffer brings its head-room along.
    assert "1 frame " in shape_classes(torch.float32, (1, 16, 3, 8, 8), weight, temporal_mode="valid")[0]
    halo = shape_classes(torch.float32, (1, 16, 3, 10, 10), weight, spatial_mode="valid")
    assert halo[0] == shape_classes(torch.float32, (1, 16, 3, 8, 8), weight)[0]


def test_no_class_with_dilation_or_for_a_few_pixels():
    assert shape_classes(torch.float32, (1, 16, 4, 8, 8), (16, 16, 3, 3, 3), dilation=(2, 1, 1)) == ()
    assert shape_classes(torch.float32, (1, 16, 4, 2, 3), (16, 16, 3, 3, 3)) == ()


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Install measurements as if the native module were there; `measure({class: (ms, default_ms)})`."""
    monkeypatch.setattr(native, "why_no_cpu", lambda: None)
    monkeypatch.setattr(native, "cpu_isa", lambda: "avx512")
    monkeypatch.setattr(native, "why_incomparable", lambda isa: None)
    monkeypatch.setattr(measurements, "packing_of", lambda args, size: Packing("winograd", "avx512", 1000))
    monkeypatch.setattr(tuned, "has_amx", lambda: False)

    def install(times: dict[str, tuple[float, float]]) -> None:
        rows = tuple(Measurement(c, "", *ms, 3, "cpu", "aten", "avx512") for c, ms in times.items())
        (tmp_path / "avx512.json").write_text(Record("cpu", "aten", "avx512", False, {}, rows).text())
        monkeypatch.setattr(measurements, "TUNED", Tuned(tmp_path))

    return install


def _call(pixels: tuple[int, int] = (8, 8), dtype: torch.dtype = torch.float32, frames: int = 4):
    return torch.empty(1, 16, frames, *pixels, dtype=dtype), torch.empty(32, 16, 3, 3, 3, dtype=dtype)


def _chosen(*arguments, **keywords) -> str:
    """The backend that runs, which `explain` must agree with."""
    answer = explain(causal_conv3d, *arguments, **keywords)
    backend, precision = keywords.pop("backend", None), keywords.pop("precision", "high")
    args, out = OP.prepare(*arguments, **keywords)
    assert OP.choose(args, backend, precision, out).name == answer.chosen
    return answer.chosen


def _words(dtype: str = "float32", frames: str = "2+ frames", pixels: str = "64") -> str:
    return CLASS.format(dtype=dtype, frames=frames, pixels=pixels)


def test_auto_takes_what_was_measured_to_be_faster(measure):
    measure({_words(): (12.1, 47.3)})
    rows = dict(explain(causal_conv3d, *_call()).rows)
    assert _chosen(*_call()) == "cpu"
    assert rows["cpu"] == (
        "runs this call: measured 3.91 times as fast as aten (12.1 against 47.3 ms for float32 3x3x3 16->32, "
        "2+ frames of 64 pixels, avx512)"
    )
    assert rows["aten"] == "can run this call, but cpu was measured to be faster"
    assert rows["reference"] == "can run this call, but another backend is preferred"


def test_auto_leaves_what_was_measured_to_be_slower(measure):
    measure({_words(): (20.0, 9.0)})
    rows = dict(explain(causal_conv3d, *_call()).rows)
    assert _chosen(*_call()) == "aten"
    assert rows["aten"] == "runs this call"
    assert rows["cpu"] == (
        "can run this call, but was measured at 0.45 times the speed of aten (20 against 9 ms for float32 "
        "3x3x3 16->32, 2+ frames of 64 pixels, avx512), and auto asks for more than 1.05"
    )


def test_auto_leaves_what_was_not_measured(measure):
    measure({_words(): (1.0, 2.0)})
    others = {
        "one frame": _call(frames=1),
        "smaller frames": _call((5, 5)),
        "another dtype": _call(dtype=torch.bfloat16),
        "float64": _call(dtype=torch.float64),
    }
    for name, call in others.items():
        assert _chosen(*call) == "aten", name
    assert _chosen(*_call(), stride=(1, 2, 2)) == "aten"
    assert _chosen(*_call(), dilation=2) == "aten"
    rows = dict(explain(causal_conv3d, *others["one frame"]).rows)
    assert rows["cpu"] == (
        "can run this call, but auto takes only what was measured to be faster, and no measurement covers it"
    )


def test_the_largest_frames_measured_speak_for_larger_ones(measure):
    measure({_words(): (1.0, 2.0), _words(pixels="256"): (2.0, 1.0)})
    assert _chosen(*_call((8, 8))) == "cpu"
    assert _chosen(*_call((16, 16))) == "aten"
    assert _chosen(*_call((64, 64))) == "aten", "256 pixels are nearer than 64"
    measure({_words(): (1.0, 2.0)})
    assert _chosen(*_call((64, 64))) == "cpu"


def test_modes_do_not_split_classes(measure):
    measure({_words(): (1.0, 2.0)})
    assert _chosen(*_call(), temporal_mode="zeros", spatial_mode="replicate") == "cpu"


def test_a_measurement_overrules_neither_a_sentence_nor_a_word(measure):
    measure({_words(): (1.0, 2.0)})
    assert _chosen(*_call(), precision="exact") == "aten", "the kernel sums in another order"
    with use_backend("reference"):
        assert _chosen(*_call()) == "reference"
        assert _chosen(*_call(), backend="auto") == "cpu"
    measure({_words(): (2.0, 1.0)})
    assert _chosen(*_call(), backend="cpu") == "cpu"
    assert dict(explain(causal_conv3d, *_call(), backend="cpu").rows)["cpu"] == "runs this call"


def test_a_forced_backend_looks_at_no_measurement(measure, tmp_path):
    measure({})
    (tmp_path / "avx512.json").write_text("{")
    for backend in ("aten", "reference", "cpu"):
        assert _chosen(*_call(), backend=backend) == backend
    with pytest.raises(BadMeasurements, match="avx512.json is malformed"):
        causal_conv3d(*_call())


def test_another_device_and_a_missing_module_are_not_measured(measure, monkeypatch):
    measure({_words(): (1.0, 2.0)})
    x, weight = (t.to("meta") for t in _call())
    assert explain(causal_conv3d, x, weight).chosen == "aten"
    monkeypatch.setattr(native, "why_no_cpu", lambda: "it was not built")
    assert _chosen(*_call()) == "aten"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=NAMES.get)
def test_half_precision_with_amx(measure, monkeypatch, dtype):
    name = NAMES[dtype]
    measure({_words(): (1.0, 2.0), _words(name): (1.0, 2.0)})
    assert _chosen(*_call(dtype=dtype)) == "cpu"
    monkeypatch.setattr(tuned, "has_amx", lambda: True)
    measure({_words(): (1.0, 2.0), _words(name): (1.0, 2.0)})
    assert _chosen(*_call(dtype=dtype)) == "aten"
    assert dict(explain(causal_conv3d, *_call(dtype=dtype)).rows)["cpu"] == (
        "can run this call, but was measured on a processor without AMX, whose matrix units make the "
        f"framework's {name} convolution another one"
    )
    assert _chosen(*_call(), backend=None) == "cpu", "float32 is the same with AMX"
    assert _chosen(*_call(dtype=dtype), backend="cpu") == "cpu"


def test_every_file_in_the_package_can_be_used():
    for tunable in TUNABLE["cuda"].values():  # every op: a GPU has no grid of its own for any
        table = tunable.tuned
        for path in table.folder.glob("*.json"):
            Tuned(table.folder).find(path.stem.removesuffix(tuned.AMX), [])
            with_amx = path.stem.endswith(tuned.AMX)
            # One table serves processors with and without AMX where nothing is multiplied.
            assert with_amx == (table.multiplies and tuned.read_record(path).amx)


def test_every_file_in_the_package_belongs_to_an_op():
    folders = {path.parent for path in Path(causalvae_kernels.__file__).parent.glob("ops/*/tuned/*.json")}
    assert folders and folders <= {tunable.tuned.folder for tunable in TUNABLE["cuda"].values()}


def test_packed_weights_that_would_not_be_kept_were_not_measured(measure):
    x, weight = _call()
    measure({_words(): (2.0, 5.0)})
    assert _chosen(x, weight) == "cpu"
    with use_packed_budget(999):
        assert _chosen(x, weight) == "aten"
        assert "has no room for these" in str(explain(causal_conv3d, x, weight))
    weight.requires_grad_()
    assert "these are being trained" in str(explain(causal_conv3d, x, weight))
    with torch.no_grad():
        assert _chosen(x, weight) == "cpu"


def test_a_gpu_takes_channels_as_they_are_and_larger_frames():
    shape, weight = (1, 96, 4, 480, 832), (192, 96, 3, 3, 3)
    assert shape_classes(torch.bfloat16, shape, weight, gpu=True) == tuple(
        f"bfloat16 3x3x3 96->192, 2+ frames of {pixels} pixels"
        for pixels in ("262144+", "65536", "16384", "4096", "1024")
    )
    assert shape_classes(torch.bfloat16, (1, 96, 4, 16, 16), weight, gpu=True) == ()


def test_triton_takes_the_tile_that_was_measured():
    tile = Tile(64, 256, 64, 8, 3, group=2)
    measurement = Measurement("any", "any", 1.0, 2.0, 3, "triton", "aten", "sm90", plan=asdict(tile))
    assert tuned_tile(measurement) == tile
    assert tuned_tile(None) is None
    assert tuned_tile(replace(measurement, backend="cuda")) is None
    assert tuned_tile(replace(measurement, objection="measured on another GPU")) is None
