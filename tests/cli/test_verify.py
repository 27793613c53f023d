"""`verify`: the table, the JSON and the exit code; the parity itself is tested where it lives."""

import json
import sys

import pytest
import torch

from causalvae_kernels.parity import ParityResult

pytest.importorskip("diffusers")

PASSED = ParityResult("causal_conv3d", "aten", "float32", 1e-7, 2e-7, True, "12 comparisons")
EXACT = ParityResult("causal_pad3d", "aten", "float32", 0.0, 0.0, True, "12 comparisons")
FAILED = ParityResult("causal_conv3d", "cpu", "float32", float("nan"), 2e-7, False, "odd: got nan")
SKIPPED = ParityResult("causal_conv3d", "cpu", "float32", 0.0, 0.0, True, "no compiler", skipped=True)


@pytest.fixture
def parity(monkeypatch):
    """Replace the parity checks by given results."""

    def install(ops, vae):
        module = sys.modules["causalvae_kernels.cli.verify"]
        asked = {}

        def fake_ops(progress, **keywords):
            asked["ops"] = keywords
            progress(0, 1, "something")
            return ops

        def fake_vae(model, swap, progress, **keywords):
            asked["vae"] = (type(model).__name__, keywords)
            return vae

        monkeypatch.setattr(module, "verify_ops", fake_ops)
        monkeypatch.setattr(module, "verify_vae", fake_vae)
        return asked

    return install


def test_green(run, parity):
    asked = parity([PASSED, EXACT], [SKIPPED])
    result = run("verify", "--quick", "--seed", 5, "--device", "cpu")
    assert result.code == 0, result.stderr
    assert "all passed, 1 could not run here" in result.stdout and "seed 5" in result.stdout
    assert "equal bits" in result.stdout and "no compiler" in result.stdout
    where = {"quick": True, "device": torch.device("cpu")}
    assert asked == {"ops": {**where, "seed": 5}, "vae": ("AutoencoderKLCogVideoX", where)}


def test_failure_of_an_op_or_of_the_vae_is_exit_code_1(run, parity):
    for ops, vae in (([FAILED], [PASSED]), ([PASSED], [FAILED])):
        parity(ops, vae)
        result = run("verify")
        assert result.code == 1
        assert (
            "1 of 2 failed" in result.stdout and "FAILED" in result.stdout and "odd: got nan" in result.stdout
        )


def test_json(run, parity):
    parity([PASSED], [FAILED])
    result = run("verify", "--json")
    assert result.code == 1
    facts = json.loads(result.stdout)
    assert facts["passed"] is False and isinstance(facts["seed"], int)
    assert [row["passed"] for row in facts["results"]] == [True, False]
    assert facts["results"][1]["error"] is None


def test_weights_that_are_not_there(refuse, folder):
    assert "weights nowhere: no such folder" in refuse("verify", "--weights", "nowhere")
