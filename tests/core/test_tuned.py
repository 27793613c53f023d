"""Files of measurements: what is written is read, what is broken is named, AMX is its own world."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from causalvae_kernels.core import tuned
from causalvae_kernels.core.errors import BadMeasurements
from causalvae_kernels.core.tuned import Measurement, Record, Tuned, read_record

ROW = Measurement(
    "float32 3x3x3 16->16, 2+ frames of 64 pixels",
    "1x16x4x8x9 -> 1x16x4x8x9",
    ms=2.0,
    default_ms=5.0,
    rounds=7,
    backend="cpu",
    default="aten",
    isa="avx512",
)


def _record(*rows: Measurement, amx: bool = False) -> Record:
    return Record("cpu", "aten", "avx512", amx, {"processor": "one"}, rows)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for files, on a processor without AMX that uses its best instruction set."""
    monkeypatch.setattr(tuned, "has_amx", lambda: False)
    monkeypatch.setattr(tuned.native, "why_incomparable", lambda isa: None)
    return tmp_path


def _find(folder, record: Record, shape_class: str) -> Measurement | None:
    (folder / "avx512.json").write_text(record.text())
    return Tuned(folder).find("avx512", [shape_class])


def test_what_is_written_is_read(folder):
    path = folder / "any.json"
    other = replace(ROW, shape_class=ROW.shape_class.replace("64", "256"), ms=0.00123456)
    path.write_text(_record(ROW, other).text())
    record = read_record(path)
    assert record.machine == {"processor": "one"} and record.isa == "avx512" and record.amx is False
    assert record.measurements == (ROW, replace(other, ms=0.001235))


def test_rows_stand_on_a_line_each_sorted_by_size():
    classes = [f"float32 3x3x3 16->16, 1 frame of {n} pixels" for n in ("16", "64", "1024", "16384+")]
    text = _record(*(replace(ROW, shape_class=c) for c in reversed(classes))).text()
    lines = [line for line in text.splitlines() if '"class"' in line]
    assert [json.loads(line.rstrip(","))["class"] for line in lines] == classes
    assert json.loads(text)["rows"] and text.endswith("}\n")
    assert json.loads(_record().text())["rows"] == []


def test_faster_is_more_than_noise():
    assert ROW.faster and ROW.ratio == 2.5
    assert not replace(ROW, ms=5.0, default_ms=5.2).faster
    assert replace(ROW, ms=5.0, default_ms=5.3).faster
    assert not replace(ROW, objection="measured elsewhere").faster


def test_figures():
    assert ROW.figures == f"2 against 5 ms for {ROW.shape_class}, avx512"
    assert replace(ROW, ms=12.06, default_ms=1234.5).figures.startswith("12.1 against 1,234 ms for ")


def test_the_first_class_that_was_measured(folder):
    (folder / "avx512.json").write_text(_record(ROW).text())
    measurements = Tuned(folder)
    assert measurements.find("avx512", ["unknown", ROW.shape_class]).ms == 2.0
    assert measurements.find("avx512", ["unknown"]) is None
    assert measurements.find("avx512", []) is None
    assert measurements.find("avx2", [ROW.shape_class]) is None, "another instruction set"


def test_no_file_is_no_measurement_and_a_file_is_read_once(folder):
    measurements = Tuned(folder / "missing")
    assert measurements.find("avx512", [ROW.shape_class]) is None
    (folder / "avx512.json").write_text(_record(ROW).text())
    measurements = Tuned(folder)
    assert measurements.find("avx512", [ROW.shape_class])
    (folder / "avx512.json").unlink()
    assert measurements.find("avx512", [ROW.shape_class])


def _changed(**changes) -> str:
    return json.dumps({**json.loads(_record(ROW).text()), **changes})


BROKEN = {
    "no JSON": ("{", "is malformed"),
    "not UTF-8": (b"\xff\xfe", "is malformed"),
    "a list": ("[]", "is malformed"),
    "no format": ("{}", "is malformed (KeyError: 'format')"),
    "a newer format": (
        _changed(format=2),
        "has format 2, and this version of causalvae_kernels reads format 1",
    ),
    "no rows": (_changed(rows=None), "is malformed"),
    "a row without times": (_changed(rows=[{"class": "float32"}]), "is malformed (KeyError: 'ms')"),
    "a time of zero": (
        _changed(rows=[{"class": "a", "shapes": "b", "ms": 0, "default_ms": 1, "rounds": 1}]),
        "expected milliseconds above zero",
    ),
    "a time that is none": (
        _changed(rows=[{"class": "a", "shapes": "b", "ms": 1, "default_ms": float("nan"), "rounds": 1}]),
        "expected milliseconds above zero",
    ),
    "another instruction set": (_changed(isa="avx2"), "holds measurements of avx2, expected avx512"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(folder, case):
    contents, sentence = BROKEN[case]
    path = folder / "avx512.json"
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    measurements = Tuned(folder)
    for _ in range(2):  # not only at the first call
        with pytest.raises(BadMeasurements) as raised:
            measurements.find("avx512", [ROW.shape_class])
        assert str(path) in str(raised.value) and sentence in str(raised.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_half_precision_counts_only_where_both_or_none_have_amx(folder, monkeypatch, dtype, here, there):
    monkeypatch.setattr(tuned, "has_amx", lambda: here)
    row = replace(ROW, shape_class=ROW.shape_class.replace("float32", dtype))
    found = _find(folder, _record(row, amx=there), row.shape_class)
    assert found.faster == (dtype == "float32" or here == there)
    if not found.faster:
        word = "with" if there else "without"
        assert found.objection == (
            f"measured on a processor {word} AMX, whose matrix units make the framework's {dtype} "
            "convolution another one"
        )


@pytest.mark.parametrize("here", [False, True])
def test_rows_of_processors_like_this_one_go_before_those_of_others(folder, monkeypatch, here):
    monkeypatch.setattr(tuned, "has_amx", lambda: here)
    classes = [ROW.shape_class, *(ROW.shape_class.replace("3x3x3", other) for other in ("1x3x3", "1x1x1"))]
    assert len(set(classes)) == 3
    for amx, name in ((False, "avx512.json"), (True, "avx512-amx.json")):
        rows = [replace(ROW, shape_class=words, ms=2.0 if amx else 1.0) for words in classes]
        (folder / name).write_text(_record(*(rows[:2] if amx else rows[1:]), amx=amx).text())
    table = Tuned(folder)
    assert [table.find("avx512", [words]).ms for words in classes] == [2.0, 2.0 if here else 1.0, 1.0]
    assert table.path("avx512").name == ("avx512-amx.json" if here else "avx512.json")
    assert all(table.answers("avx512", words) for words in classes)
    assert not table.answers("avx512", "another")
    assert table.path("sm90").name == "sm90.json"


@pytest.mark.parametrize("here", [False, True])
def test_an_op_that_does_not_multiply_has_one_file(folder, monkeypatch, here):
    monkeypatch.setattr(tuned, "has_amx", lambda: here)
    row = replace(ROW, shape_class="16-bit contiguous, 4096 elements")
    (folder / "avx512.json").write_text(_record(row, amx=not here).text())
    (folder / "avx512-amx.json").write_text(_record(replace(row, ms=7.0), amx=True).text())
    table = Tuned(folder, multiplies=False)
    assert table.path("avx512").name == "avx512.json"
    assert table.find("avx512", [row.shape_class]) == replace(row, objection=None)


def test_a_row_that_holds_goes_before_one_of_larger_frames_that_does_not(folder, monkeypatch):
    monkeypatch.setattr(tuned, "has_amx", lambda: True)
    large, small = (f"bfloat16 3x3x3 16->16, 2+ frames of {n} pixels" for n in (64, 16))
    for amx, words in ((False, large), (True, small)):
        path = Tuned(folder)._path("avx512", amx=amx)
        path.write_text(_record(replace(ROW, shape_class=words), amx=amx).text())
    assert Tuned(folder).find("avx512", [large, small]).shape_class == small
    assert "without AMX" in Tuned(folder).find("avx512", [large]).objection


def test_a_framework_on_another_instruction_set_was_not_measured(folder, monkeypatch):
    monkeypatch.setattr(tuned.native, "why_incomparable", lambda isa: "oneDNN is free")
    found = _find(folder, _record(ROW), ROW.shape_class)
    assert not found.faster
    assert found.objection == "measured with both on one instruction set (oneDNN is free)"


def test_amx_is_known_without_the_function_of_torch(monkeypatch):
    asked = tuned.has_amx()
    assert isinstance(asked, bool)
    monkeypatch.delattr(tuned.torch.cpu, "_is_amx_tile_supported", raising=False)
    assert tuned.has_amx.__wrapped__() == asked


GPU_ROW = replace(ROW, backend="cuda", isa="sm90", plan={"block_m": 128})


@pytest.fixture
def h200(tmp_path, monkeypatch):
    """A folder for files, on a GPU of a known name."""
    monkeypatch.setattr(tuned.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    return tmp_path


def _gpu_record(*rows: Measurement, gpu: str) -> Record:
    return Record("triton", "aten", "sm90", False, {"gpus": [{"name": gpu}]}, rows)


def test_a_gpu_has_rows_of_several_backends_with_their_plans(h200):
    other = replace(GPU_ROW, shape_class="another", backend="triton", plan=None)
    path = h200 / "sm90.json"
    path.write_text(_gpu_record(GPU_ROW, other, gpu="NVIDIA H200").text())
    assert sorted(read_record(path).measurements, key=lambda m: m.backend) == [GPU_ROW, other]
    assert '"backend": "triton"' not in path.read_text().partition('"rows"')[2], "the file's own goes unsaid"
    found = Tuned(h200).find("sm90", [GPU_ROW.shape_class])
    assert found.faster and found.backend == "cuda" and found.plan == {"block_m": 128}


def test_a_measurement_of_another_gpu_is_no_reason(h200):
    (h200 / "sm90.json").write_text(_gpu_record(GPU_ROW, gpu="NVIDIA H100").text())
    found = Tuned(h200).find("sm90", [GPU_ROW.shape_class])
    assert not found.faster and found.objection == "measured on NVIDIA H100, and this is NVIDIA H200"
