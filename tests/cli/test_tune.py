"""`tune`: the file that it writes is what `auto` reads."""

import json
import sys

import pytest
import torch

from causalvae_kernels import causal_conv3d, explain
from causalvae_kernels.cli import tune_races
from causalvae_kernels.core import native
from causalvae_kernels.core.tuned import Measurement, Tuned, read_own, read_record
from causalvae_kernels.ops.causal_conv3d import measurements

pytestmark = pytest.mark.skipif(native.why_no_cpu() is not None, reason="needs the native module")

# A dozen cells of microseconds.
TINY = ("--kernel", "1x1x1", "--max-gflop", "0.0001", "--seconds", "0.001")


@pytest.fixture(autouse=True)
def free_onednn(monkeypatch):
    """The framework is held to no instruction set."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "new" / f"{native.cpu_isa()}.json"


def test_auto_goes_by_what_was_written(run, file, monkeypatch):
    result = run("tune", *TINY, "--dtype", "float32", "--output", file)
    assert result.code == 0, result.stderr
    record = read_record(file)
    assert f"{len(record.measurements)} measured now" in result.stdout
    assert record.machine["threads"] == torch.get_num_threads() and record.machine["processor"]
    assert [path.name for path in file.parent.iterdir()] == [file.name]

    monkeypatch.setattr(measurements, "TUNED", Tuned(file.parent))
    wanted = "float32 1x1x1 16->16, 1 frame of 16 pixels"
    row = next(m for m in record.measurements if m.shape_class == wanted)
    answer = explain(causal_conv3d, torch.empty(1, 16, 1, 4, 4), torch.empty(16, 16, 1, 1, 1))
    assert answer.chosen == ("cpu" if row.faster else "aten")
    assert row.figures in dict(answer.rows)["cpu"]


def test_by_default_the_users_cache_is_written(run, refuse, tmp_path, monkeypatch):
    monkeypatch.setenv("CAUSALVAE_KERNELS_CACHE", str(tmp_path / "cache"))
    tuned_before = {path: path.read_bytes() for path in measurements.TUNED.folder.iterdir()}
    options = ("tune", "--op", "causal_conv3d", *TINY, "--dtype", "float32")
    first = run(*options)
    assert first.code == 0, first.stderr
    number = len(read_own("causal_conv3d", native.cpu_isa()))
    assert number > 0 and f"{number} measured now, {number} in {tmp_path}" in first.stdout.replace("\n", "")
    assert f"0 measured now, {number} in" in run(*options, "--resume").stdout
    assert f"{number} measured now, {number} in" in run(*options).stdout
    assert f"{number} hold here" in " ".join(run("info").stdout.split())
    assert {path: path.read_bytes() for path in measurements.TUNED.folder.iterdir()} == tuned_before
    assert f"{number} measurements removed" in run("tune", "--clear").stdout
    assert read_own("causal_conv3d", native.cpu_isa()) == {}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAUSALVAE_KERNELS_CACHE", str(tmp_path / "file"))
    assert "file" in refuse(*options)


def test_resume_measures_only_what_is_missing(run, file):
    assert run("tune", *TINY, "--dtype", "float32", "--output", file).code == 0
    facts = json.loads(file.read_text())
    removed = facts["rows"].pop()
    for row in facts["rows"]:
        row["ms"] = 77.0
    file.write_text(json.dumps(facts))
    result = run("tune", *TINY, "--dtype", "float32", "--resume", "--output", file)
    assert result.code == 0 and "1 measured now" in result.stdout, result.stderr
    rows = {row["class"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows.pop(removed["class"])["ms"] < 77
    assert {row["ms"] for row in rows.values()} == {77.0}


def test_without_resume_others_stay_and_the_same_is_measured_anew(run, file):
    for dtype in ("float32", "bfloat16", "float32"):
        assert run("tune", *TINY, "--dtype", dtype, "--output", file).code == 0
    classes = [m.shape_class for m in read_record(file).measurements]
    assert len(set(classes)) == len(classes)
    assert {c.split(" ")[0] for c in classes} == {"float32", "bfloat16"}


def test_other_ops_keep_what_is_not_measured_too(run, file, monkeypatch):
    def race(job, device, say):
        return Measurement(job.shape_class, "any", 1.0, 2.0, 3, "cpu", "aten", native.cpu_isa()), []

    monkeypatch.setattr(tune_races, "run_race", race)
    for dtype in ("float32", "bfloat16", "float32"):
        assert run("tune", "--op", "downsample_conv", "--dtype", dtype, "--output", file).code == 0
    classes = [m.shape_class for m in read_record(file).measurements]
    assert len(set(classes)) == len(classes)
    assert {c.split(" ")[0] for c in classes} == {"float32", "bfloat16"}


def test_times_of_another_machine_are_not_mixed_in(run, refuse, file):
    assert run("tune", *TINY, "--dtype", "float32", "--output", file).code == 0
    before = file.read_text()
    facts = json.loads(before)
    facts["machine"]["threads"] = 99
    file.write_text(json.dumps(facts))
    assert "99 threads" in refuse("tune", *TINY, "--resume", "--output", file)
    file.write_text("{")
    assert "is malformed" in refuse("tune", *TINY, "--resume", "--output", file)


def test_a_wrong_kernel_is_exit_code_1(run, file, monkeypatch):
    module = sys.modules["causalvae_kernels.cli.tune"]
    monkeypatch.setattr(module, "tune_cells", lambda cells, **_: ([], ["cpu differs from aten by 3"]))
    result = run("tune", *TINY, "--output", file)
    assert result.code == 1 and "not recorded: cpu differs from aten by 3" in result.stderr
    assert not file.exists()


BAD_INPUT = {
    "unknown dtype": (["--dtype", "int8"], "--dtype: got 'int8'"),
    "unknown kernel": (["--kernel", "5x5x5"], "--kernel: got '5x5x5', expected one of 3x3x3"),
    "no work": (["--max-gflop", "0"], "--max-gflop: got 0.0, expected a number above 0"),
    "too little work": (["--max-gflop", "1e-9"], "--max-gflop: got 1e-09, expected at least 0.1"),
    "no time": (["--seconds", "-1"], "--seconds: got -1.0, expected a number above 0"),
    "a time that is none": (["--seconds", "nan"], "--seconds: got nan, expected a number above 0"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(refuse, file, case):
    arguments, sentence = BAD_INPUT[case]
    assert sentence in refuse("tune", *arguments, "--output", file)


def test_an_output_that_is_a_folder(refuse, tmp_path):
    assert "is a folder, expected a file" in refuse("tune", *TINY, "--output", tmp_path)


def test_another_instruction_set_wants_onednn_held(refuse, file, monkeypatch):
    if len(native.cpu_module().supported_isas()) == 1:
        pytest.skip("this processor has one instruction set")
    monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", "portable")
    assert "set ONEDNN_MAX_CPU_ISA=SSE41 as well" in refuse("tune", *TINY, "--output", file)


def test_an_instruction_set_that_is_not_here(refuse, file, monkeypatch):
    module = native.cpu_module()
    monkeypatch.setattr(native, "_load", lambda: (_Without(module), None))
    monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", "avx512")
    assert "asks for avx512" in refuse("tune", *TINY, "--output", file)


class _Without:
    """A module on a processor without AVX-512."""

    def __init__(self, module):
        self.module = module

    def supported_isas(self):
        return ["portable"]

    def compiled_isas(self):
        return self.module.compiled_isas()
