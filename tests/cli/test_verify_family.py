"""`verify --family`: the page, its JSON and exit code, and what is refused."""

import json

import pytest
import torch

from causalvae_kernels import frame_rule
from causalvae_kernels.demo import family_check
from causalvae_kernels.demo.family_check import FrameRow, ParityRow, build
from causalvae_kernels.models import FAMILIES
from causalvae_kernels.models.family_names import family_class
from causalvae_kernels.models.loading import spatial_unit
from causalvae_kernels.parity import Comparison
from causalvae_kernels.temporal.model_rules import FAMILIES as KNOWN
from causalvae_kernels.workloads.small_vaes import SMALL_VAES

diffusers = pytest.importorskip("diffusers")
FEW = ("--frames", 2, "--rounds", 1, "--size", "16x16", "--device", "cpu")
HERE = FEW[-2:]


@pytest.fixture(scope="module")
def page():
    """A page about a model of which everything is small, as JSON."""
    from typer.testing import CliRunner

    from causalvae_kernels.cli import app

    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    arguments = ("verify", "--family", "cogvideox", *map(str, FEW), "--json")
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_page_says_what_was_found(page):
    assert page["passed"] is True and page["model"] == "AutoencoderKLCogVideoX" and page["has_rules"] is True
    assert page["replaced"]["CogVideoXCausalConv3d"] > 0
    assert {
        "class": "GroupNorm",
        "reason": "run as part of the encoder or decoder; with gradients by the framework",
        "modules": 13,
    } in page["left"]
    tiers = [(row["tier"], row["step"], row["passed"]) for row in page["parity"]]
    assert tiers == [(t, s, True) for t in ("exact", "high", "high, aten") for s in ("encode", "decode")]
    assert all(0 < row["error"] <= row["allowed"] for row in page["parity"] if row["tier"] != "exact")
    assert [row["step"] for row in page["speed"]] == ["encode", "decode"]
    assert all(len(row["swapped_ms"]) == 1 and row["speedup"] > 0 for row in page["speed"])
    rule = frame_rule("CogVideoX")
    for row in page["frames"]:
        assert row["shipped"] == rule.round_trip(row["frames"]) and row["adapted"] == row["frames"]
    assert [row["frames"] for row in page["frames"]] == [1, 2]


@pytest.fixture
def fake(monkeypatch):
    """Replace what takes time by given rows."""

    def install(parity=(), speed=(), frames=()):
        monkeypatch.setattr(family_check, "check_parity", lambda *_: iter(parity))
        monkeypatch.setattr(family_check, "check_speed", lambda *_: list(speed))
        monkeypatch.setattr(family_check, "check_frames", lambda *_: iter(frames))

    return install


GOOD = Comparison(1e-7, 2e-7, 1e-7, 2e-7)
BAD = Comparison(3e-7, 2e-7, 1e-7, 2e-7)


@pytest.mark.parametrize(
    ("parity", "frames", "words"),
    [
        ([ParityRow("high", "encode", BAD)], [], ["FAILED", "3.0e-07"]),
        ([], [FrameRow(6, 2, 5, 8, 6)], ["FAILED, expected 8 and 6"]),
        (
            [],
            [FrameRow(6, None, None, None, 5, "as shipped: a shape [3]")],
            ["expected a failure", "a shape [3]"],
        ),
    ],
)
def test_what_fails_is_exit_code_1(run, fake, parity, frames, words):
    fake(parity, [], frames)
    result = run("verify", "--family", "cogvideox", *FEW)
    assert result.code == 1 and all(word in result.stdout for word in words), result.stdout


def test_what_was_not_compared_is_said_and_no_failure(run, fake):
    fake([ParityRow("high", "encode", None, "an oracle needs 9.0 GiB")], [], [FrameRow(1, 1, 1, 1, 1)])
    result = run("verify", "--family", "cogvideox", *FEW)
    assert result.code == 0 and "not compared: an oracle needs 9.0 GiB" in result.stdout
    assert "all passed" in result.stdout


def test_weights_of_a_folder(run, fake, tmp_path):
    vae = diffusers.AutoencoderKLMagvit(**SMALL_VAES["AutoencoderKLMagvit"])
    vae.save_pretrained(tmp_path / "vae")
    built = build("AutoencoderKLMagvit", tmp_path, torch.bfloat16)
    assert all(torch.equal(v.bfloat16(), built.state_dict()[k]) for k, v in vae.state_dict().items())
    fake([ParityRow("high", "encode", GOOD)])
    result = run(
        "verify", "--family", "magvit", "--weights", tmp_path, "--dtype", "bfloat16", *HERE, "--json"
    )
    assert result.code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["weights"] == str(tmp_path) and facts["dtype"] == "bfloat16"
    assert facts["clip"] == {"frames": 17, "height": 32, "width": 48}


def test_refusals(refuse, folder, tmp_path):
    assert "got 'nonsense', expected one of" in refuse("verify", "--family", "nonsense")
    assert "no such folder" in refuse("verify", "--family", "wan", "--weights", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refuse("verify", "--family", "wan", "--weights", tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"_class_name": "AutoencoderKLMochi"}')
    words = refuse("verify", "--family", "wan", "--weights", tmp_path / "empty")
    assert "describes AutoencoderKLMochi, expected AutoencoderKLWan" in words
    assert "expected multiples of 8" in refuse("verify", "--family", "cogvideox", "--size", "30x40")
    assert "float32, bfloat16, float16" in refuse("verify", "--family", "cogvideox", "--dtype", "int8")
    assert "expected at least 1" in refuse("verify", "--family", "cogvideox", "--rounds", "0")
    assert "goes with --family" in refuse("verify", "--frames", "3")
    assert "does not go with --family" in refuse("verify", "--family", "cogvideox", "--quick")
    assert "nearest valid" in refuse("verify", "--family", "magvit", "--frames", "4", *HERE)


def test_a_class_that_this_diffusers_does_not_have(refuse, monkeypatch):
    monkeypatch.setattr(diffusers, "AutoencoderKLMagvit", None)
    assert "has no AutoencoderKLMagvit; install a newer one" in refuse("verify", "--family", "magvit")


def test_every_family_has_a_word_and_a_small_configuration():
    for cls in {**FAMILIES, **KNOWN}:
        assert family_class(cls) == cls
        model = build(cls, None, torch.float32)
        assert sum(p.numel() for p in model.parameters()) < 4e6
        assert spatial_unit(model) % 8 == 0
    assert family_class("WAN") == "AutoencoderKLWan" and family_class("vidtok") == "AutoencoderVidTok"


def test_memory_decides_what_the_oracle_computes_in(monkeypatch):
    vae = build("AutoencoderKLCogVideoX", None, torch.bfloat16)
    clip = family_check.clip_for(1, (32, 32), vae)

    def oracle(room):
        monkeypatch.setattr(family_check.machine_memory, "free", lambda: room)
        return family_check._oracle_dtype(vae, clip)

    assert oracle(2**36) == (torch.float64, "") and oracle(2**20)[0] is None
    monkeypatch.setattr(family_check, "peak_allocated", lambda *_: 0)
    weights = sum(p.numel() for p in vae.parameters())
    for room, expected in ((9 * weights, torch.float64), (5 * weights, torch.float32), (3 * weights, None)):
        dtype, note = oracle(room)
        assert dtype == expected and bool(note) == (expected != torch.float64)
    vae, clip = vae.float(), clip.float()
    assert oracle(5 * weights)[0] is None
