"""The user's cache of measurements: what is found under which conditions, and what garbage costs."""

import json
import multiprocessing
import os
import stat
import warnings

import pytest
import torch

from causalvae_kernels import causal_conv3d, explain
from causalvae_kernels.core import native, own_measurements, tuned
from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.core.processor import processor
from causalvae_kernels.core.tuned import Measurement, Tuned, keep_own, read_own
from causalvae_kernels.ops.causal_conv3d import measurements

pytestmark = pytest.mark.skipif(native.why_no_cpu() is not None, reason=str(native.why_no_cpu()))

ISA = native.cpu_isa() if native.why_no_cpu() is None else ""
CLASS = "float32 3x3x3 16->16, 2+ frames of 64 pixels"
X, WEIGHT = torch.empty(1, 16, 3, 8, 8), torch.empty(16, 16, 3, 3, 3)


def measured(ms=2.0, shape_class=CLASS, **others):
    return Measurement(shape_class, "any", ms, 5.0, 7, "cpu", "aten", ISA, **others)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and a package that brings no measurements of the convolution."""
    monkeypatch.setenv("CAUSALVAE_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(own_measurements, "_warned", False)
    monkeypatch.setattr(native, "why_incomparable", lambda isa: None)
    monkeypatch.setattr(measurements, "TUNED", Tuned(tmp_path / "none", op="causal_conv3d"))
    return tmp_path / "cache" / "measurements"


def forget():
    measurements.TUNED._tables.clear()


def chosen():
    forget()
    return explain(causal_conv3d, X, WEIGHT).chosen


def test_what_is_kept_is_found_and_auto_goes_by_it():
    assert chosen() == "aten" and read_own("causal_conv3d", ISA) == {}
    keep_own("causal_conv3d", ISA, measured())
    (found,) = read_own("causal_conv3d", ISA).values()
    assert (found.ms, found.default_ms, found.rounds, found.backend) == (2.0, 5.0, 7, "cpu")
    assert chosen() == "cpu"
    assert f"measured here on {found.date}" in str(explain(causal_conv3d, X, WEIGHT))
    keep_own("causal_conv3d", ISA, measured(9.0, plan={"block": 3}))
    (found,) = read_own("causal_conv3d", ISA).values()
    assert (found.ms, found.plan) == (9.0, {"block": 3}), "the later one holds"
    assert chosen() == "aten"
    assert read_own("group_norm", ISA) == {}


def test_it_goes_before_what_the_package_brings(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    shipped = tuned.Record(
        "cpu", "aten", ISA, tuned.has_amx(), {}, (measured(1.0), measured(1.0, CLASS[:-10]))
    )
    name = tuned.Tuned(tmp_path / "package").path(ISA).name
    (tmp_path / "package" / name).write_text(shipped.text())
    table = Tuned(tmp_path / "package", op="causal_conv3d")
    assert table.find(ISA, [CLASS]).ms == 1.0 and table.find(ISA, [CLASS]).date is None
    keep_own("causal_conv3d", ISA, measured(4.0))
    table = Tuned(tmp_path / "package", op="causal_conv3d")
    assert table.find(ISA, [CLASS]).ms == 4.0 and table.find(ISA, [CLASS[:-10]]).ms == 1.0
    assert Tuned(tmp_path / "package").find(ISA, [CLASS]).ms == 1.0


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"processor": "Abacus", "threads": 1}, "expected here: measured on Abacus, 1 thread"),
        ({"processor": processor(), "threads": torch.get_num_threads()}, "measured on such a machine"),
        ({"processor": processor(), "threads": 999}, "999 threads"),
        ({}, f"{ISA})"),
    ],
)
def test_explain_says_where_it_was_measured(machine, words, tmp_path, monkeypatch):
    record = tuned.Record("cpu", "aten", ISA, tuned.has_amx(), machine, (measured(1.0),))
    table = Tuned(tmp_path)
    table.path(ISA).write_text(record.text())
    monkeypatch.setattr(measurements, "TUNED", table)
    assert words in str(explain(causal_conv3d, X, WEIGHT))


@pytest.mark.parametrize("changed", ["threads", "processor", "kernels", "torch", "isa"])
def test_under_other_conditions_nothing_is_found(changed, monkeypatch):
    keep_own("causal_conv3d", ISA, measured())
    before = own_measurements.conditions(ISA)
    assert changed in before
    monkeypatch.setattr(own_measurements, "conditions", lambda architecture: {**before, changed: "other"})
    assert read_own("causal_conv3d", ISA) == {}
    monkeypatch.undo()


def test_the_number_of_threads_is_asked_on_every_call():
    keep_own("causal_conv3d", ISA, measured())
    threads = torch.get_num_threads()
    assert chosen() == "cpu"
    try:
        torch.set_num_threads(threads + 1)
        assert explain(causal_conv3d, X, WEIGHT).chosen == "aten"
    finally:
        torch.set_num_threads(threads)
    assert explain(causal_conv3d, X, WEIGHT).chosen == "cpu"


GARBAGE = {
    "no JSON": "{",
    "not an object": "[1]",
    "nothing in it": "{}",
    "a time of zero": json.dumps(
        {"format": 1, "class": CLASS, "shapes": "", "ms": 0, "default_ms": 1, "rounds": 1}
    ),
    "binary": "\x00\x01",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_a_miss_and_one_warning(garbage, cache):
    keep_own("causal_conv3d", ISA, measured())
    keep_own("causal_conv3d", ISA, measured(shape_class="another"))
    for path in (cache / own_measurements.key(ISA) / "causal_conv3d").iterdir():
        if "another" not in path.read_text():
            path.write_text(garbage)
    with pytest.warns(RuntimeWarning, match="tune --clear") as caught:
        assert set(read_own("causal_conv3d", ISA)) == {"another"}
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(read_own("causal_conv3d", ISA)) == {"another"}


def test_another_format_is_a_miss(cache):
    keep_own("causal_conv3d", ISA, measured())
    (path,) = (cache / own_measurements.key(ISA) / "causal_conv3d").iterdir()
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    assert read_own("causal_conv3d", ISA) == {}


def test_summary_and_clear(cache):
    assert own_measurements.summary() == [] and own_measurements.clear() == 0
    for op, number in (("causal_conv3d", 3), ("group_norm", 1)):
        for i in range(number):
            keep_own(op, ISA, measured(shape_class=str(i)))
    (row,) = own_measurements.summary()
    assert row["folder"] == own_measurements.key(ISA)
    assert row["measurements"] == {"causal_conv3d": 3, "group_norm": 1}
    assert row["conditions"] == own_measurements.conditions(ISA)
    (cache / "broken").mkdir()
    assert {"folder": "broken", "conditions": None, "measurements": {}} in own_measurements.summary()
    assert own_measurements.clear() == 4
    assert not cache.exists() and read_own("causal_conv3d", ISA) == {}


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is read-only for the superuser")
def test_a_folder_that_cannot_be_written(cache):
    cache.mkdir(parents=True)
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(InvalidInput, match="CAUSALVAE_KERNELS_CACHE"):
        keep_own("causal_conv3d", ISA, measured())


def test_a_file_where_the_cache_should_be(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("")
    with pytest.raises(InvalidInput, match="CAUSALVAE_KERNELS_CACHE"):
        keep_own("causal_conv3d", ISA, measured())
    assert read_own("causal_conv3d", ISA) == {}


def _keep(numbers):
    for i in numbers:
        keep_own("causal_conv3d", ISA, measured(1.0 + i, shape_class=str(i % 20)))


def test_two_processes_at_once():
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_keep, args=(range(start, 200, 2),)) for start in (0, 1)]
    for process in processes:
        process.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(process.is_alive() for process in processes):
            read_own("causal_conv3d", ISA)
    assert [process.exitcode for process in processes] == [0, 0]
    assert set(read_own("causal_conv3d", ISA)) == {str(i) for i in range(20)}
