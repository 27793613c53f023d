"""`info`, `explain` and the entry point."""

import json
import resource
import subprocess
import sys

import pytest
import torch
import typer

import causalvae_kernels
from causalvae_kernels import FrameBuffer
from causalvae_kernels.cli.common import one_sentence_errors
from causalvae_kernels.cli.example_calls import CallShape, call_arguments, op_names
from causalvae_kernels.core.env import TABLE
from causalvae_kernels.core.op import all_ops, op_named


def test_info_shows_ops_and_variables(run):
    result = run("info")
    assert result.code == 0, result.stderr
    for op in all_ops():
        assert op.name in result.stdout
    for variable in TABLE:
        assert variable.name in result.stdout
    assert torch.__version__ in result.stdout


def test_info_json(run):
    facts = json.loads(run("info", "--json").stdout)
    assert facts["versions"]["causalvae_kernels"] == causalvae_kernels.__version__
    assert facts["threads"] == torch.get_num_threads()
    for op in facts["ops"]:
        assert op["chosen"] in op["backends"]
        assert all(sentence for sentence in op["backends"].values())
    assert {row["name"] for row in facts["environment"]} == {variable.name for variable in TABLE}
    assert isinstance(facts["known_bad"], list)


def test_info_tells_of_a_wrong_variable(run, monkeypatch):
    monkeypatch.setenv("CAUSALVAE_KERNELS_BACKEND", "abacus")
    result = run("info")
    assert result.code == 0, result.stderr
    assert "abacus" in result.stdout
    facts = json.loads(run("info", "--json").stdout)
    (row,) = (row for row in facts["environment"] if row["name"] == "CAUSALVAE_KERNELS_BACKEND")
    assert row["value"] == "abacus" and "expected one of" in row["problem"]


def test_info_tells_of_known_bad_versions(run, monkeypatch):
    monkeypatch.setattr(
        sys.modules["causalvae_kernels.cli.machine"], "known_bad_versions", lambda: ["cuDNN 9.9: wrong"]
    )
    assert "known to be bad: cuDNN 9.9: wrong" in run("info").stdout


@pytest.mark.parametrize(
    "op", ["causal_conv3d", "causal_pad3d", "causal_pad3d_", "downsample_conv", "upsample_conv"]
)
def test_explain_every_op(run, op):
    result = run("explain", op, "--shape", "1,8,3,16,16", "--channels-last", "--dtype", "bfloat16")
    assert result.code == 0, result.stderr
    assert "runs this call" in result.stdout and "decided by" in result.stdout
    for backend in op_named(op).backends:
        assert backend in result.stdout


def test_explain_agrees_with_the_public_function(run):
    arguments = ("--shape", "1,8,3,16,16", "--out-channels", 4, "--kernel", "3,1,1", "--stride", "1,2,2")
    facts = json.loads(run("explain", "causal_conv3d", *arguments, "--device", "cpu", "--json").stdout)
    x, weight = torch.empty(1, 8, 3, 16, 16), torch.empty(4, 8, 3, 1, 1)
    answer = causalvae_kernels.explain(causalvae_kernels.causal_conv3d, x, weight, stride=(1, 2, 2))
    assert (facts["chosen"], facts["source"]) == (answer.chosen, answer.source)
    assert facts["backends"] == dict(answer.rows)


def test_explain_a_forced_backend(run):
    result = run("explain", "causal_conv3d", "--shape", "1,8,3,16,16", "--backend", "reference", "--json")
    facts = json.loads(result.stdout)
    assert (facts["chosen"], facts["source"]) == ("reference", "argument")


BAD_INPUT = {
    "unknown op": (["causal_con", "--shape", "1,8,3,16,16"], "expected one of causal_conv3d"),
    "shape of four": (
        ["causal_conv3d", "--shape", "1,8,3,16"],
        "--shape: got '1,8,3,16', expected 5 positive",
    ),
    "empty shape": (["causal_conv3d", "--shape", "1,8,0,16,16"], "--shape: got"),
    "kernel of two": (["causal_conv3d", "--shape", "1,8,3,16,16", "--kernel", "3,3"], "--kernel: got '3,3'"),
    "even kernel": (["causal_conv3d", "--shape", "1,8,3,16,16", "--kernel", "3,2,2"], "odd height and width"),
    "unknown dtype": (["causal_conv3d", "--shape", "1,8,3,16,16", "--dtype", "int8"], "--dtype: got 'int8'"),
    "unknown device": (
        ["causal_conv3d", "--shape", "1,8,3,16,16", "--device", "tpu9"],
        "--device: got 'tpu9'",
    ),
    "unknown backend": (["causal_conv3d", "--shape", "1,8,3,16,16", "--backend", "x"], "--backend: got 'x'"),
    "unknown precision": (
        ["causal_conv3d", "--shape", "1,8,3,16,16", "--precision", "x"],
        "--precision: got 'x'",
    ),
    "unknown mode": (
        ["causal_conv3d", "--shape", "1,8,3,16,16", "--temporal-mode", "x"],
        "temporal_mode is 'x'",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_explain_bad_input(refuse, case):
    arguments, sentence = BAD_INPUT[case]
    assert sentence in refuse("explain", *arguments)


def test_too_little_memory_is_a_sentence(capsys):
    @one_sentence_errors
    def command():
        torch.empty(10**15)

    with pytest.raises(typer.Exit) as end:
        command()
    assert end.value.exit_code == 1
    assert "error: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("layout", [(), ("--channels-last",)], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("op", op_names())
def test_explain_allocates_nothing(run, op, layout):
    """A clip of 36 GiB, and one beyond any machine's memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shape in ("1,128,81,720,1280", "1000,1024,1000,10000,10000"):
        facts = json.loads(run("explain", op, "--shape", shape, *layout, "--device", "cpu", "--json").stdout)
        assert facts["chosen"] is not None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


def test_explain_counts_in_64_bits(refuse):
    shape = "1,8,3,4000000000,4000000000"
    assert "would take" in refuse("explain", "causal_pad3d", "--shape", shape, "--device", "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("op", op_names())
def test_explain_says_the_same_without_memory(op, channels_last, dtype):
    call = CallShape((1, 16, 3, 18, 20), 16, dtype=dtype, channels_last=channels_last)
    positional, keywords = call_arguments(op, call)

    def real(x):
        if isinstance(x, FrameBuffer):
            return FrameBuffer(real(x.storage), x.head_room, x.halo, x.tail_room)
        if not isinstance(x, torch.Tensor):
            return x
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)

    with torch.no_grad():
        without = causalvae_kernels.explain(op, *positional, **keywords)
        answer = causalvae_kernels.explain(op, *map(real, positional), **keywords)
    assert without == answer


def test_module_runs_and_help_imports_no_optional_package():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['causalvae-kernels', '--help']\n"
        "try:\n"
        "    runpy.run_module('causalvae_kernels', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print('imported:', sorted({'av', 'diffusers', 'matplotlib', 'PIL', 'triton'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout
    for command in ("info", "explain", "verify", "bench", "tune", "reconstruct"):
        assert command in done.stdout
