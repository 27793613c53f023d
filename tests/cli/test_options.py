"""What all commands share: options, words, paths, packages that are missing, terminals of all kinds."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import causalvae_kernels
from causalvae_kernels.cli import app
from causalvae_kernels.cli.common import MOST_THREADS, parse_device
from causalvae_kernels.cli.console import progress_bar
from causalvae_kernels.core.env import TABLE
from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.core.optional import EXTRAS
from causalvae_kernels.demo.vae import WEIGHTS
from causalvae_kernels.models.family_names import families, family_class
from causalvae_kernels.temporal.frame_rule import short_name
from tests.support.cover import quick

PACKAGE = Path(causalvae_kernels.__file__).parent
COMMANDS = [command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_version_and_help(run, command):
    version = run(*command, "--version")
    assert (version.code, version.stdout) == (0, f"causalvae-kernels {causalvae_kernels.__version__}\n")
    short, long = run(*command, "-h"), run(*command, "--help")
    assert short.code == 0 and short.stdout == long.stdout and "--version" in short.stdout


VAE_AND_OUTPUT = ["--weights", "vae", "--output", "out"]
WITH_THREADS = {
    "reconstruct": ["clip.mp4"],
    "frames": ["clip.mp4"],
    "train": [],
    "bench": [],
    "encode": ["clip.mp4", *VAE_AND_OUTPUT],
    "decode": ["latents", *VAE_AND_OUTPUT],
}


def test_all_commands_with_threads_are_listed():
    callbacks = [command.callback for command in app.registered_commands]
    has = {c.__name__ for c in callbacks if "threads" in inspect.signature(c).parameters}
    assert has == set(WITH_THREADS)


@pytest.mark.parametrize("command", WITH_THREADS)
def test_too_many_threads(refuse, folder, command):
    words = refuse(command, *WITH_THREADS[command], "--threads", 1_000_000)
    assert f"--threads: got 1000000, expected at most {MOST_THREADS}" in words


def test_devices():
    assert parse_device("cpu") == parse_device("cpu:0") == torch.device("cpu")
    for word in ("cpu:3", "cpu:-1", "meta", "cuda:x"):
        with pytest.raises(InvalidInput, match="--device: got"):
            parse_device(word)


# What cannot be made, whoever asks; permissions do not stop a superuser.
PLACES = {
    "of the kernel": "/proc/nothing/here",
    "too long": "a" * 300,
    "under a file": "file/below",
}
WRITERS = {
    "reconstruct": ["clip.mp4", "--output"],
    "frames": ["clip.mp4", "--output"],
    "train": ["--output"],
    "tune": ["--op", "causal_conv3d", "--output"],
    "bench": ["--json"],
    "traffic": ["--json"],
    "check": ["clip.mp4", "--family", "wan", "--select", "any", "--output"],
    "encode": ["clip.mp4", "--weights", str(WEIGHTS), "--output"],
}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody writes into")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", WRITERS)
def test_an_output_that_cannot_be_made_is_refused_first(refuse, folder, command, place, clip):
    (folder / "file").write_text("")
    (folder / "clip.mp4").write_bytes(clip.read_bytes())
    begin = time.process_time()
    words = refuse(command, *WRITERS[command], PLACES[place])
    assert re.search("output|--json", words)
    assert time.process_time() - begin < 2
    assert sorted(path.name for path in folder.iterdir()) == ["clip.mp4", "file"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reconstruct", "none.mp4"), "no such file"),
        (("reconstruct", "CLIP", "--weights", "none"), "no such folder"),
        (("reconstruct", "CLIP", "--output", "file"), "is a file"),
        (("frames", "none.mp4"), "no such file"),
        (("check", "none.mp4", "--family", "wan"), "no such file"),
        (("encode", "none.mp4", "--weights", ".", "--output", "out"), "no such file"),
        (("encode", "CLIP", "--weights", "none", "--output", "out"), "no such folder"),
        (("decode", "none", "--weights", "none", "--output", "out"), "no such folder"),
        (("frames", "CLIP", "--weights", "none"), "no such folder"),
        (("train", "--weights", "none"), "no such folder"),
        (("plan", "none"), "no such folder"),
        (("plan", "--family", "nobody"), "--family: got 'nobody'"),
        (("verify", "--weights", "none"), "no such folder"),
        (("verify", "--family", "wan", "--weights", "none"), "no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_paths_are_looked_at_before_heavy_packages(refuse, folder, clip, monkeypatch, arguments, words):
    (folder / "file").write_text("")
    for package in ("diffusers", "av", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
    assert words in refuse(*(clip if word == "CLIP" else word for word in arguments))


def _imported_when_used():
    """Give the packages that cli/, data/ and demo/ import besides torch, typer, rich and Python's own."""
    own = {"torch", "typer", "rich", "causalvae_kernels", *sys.stdlib_module_names}
    for path in sorted([*PACKAGE.glob("cli/*.py"), *PACKAGE.glob("demo/*.py"), *PACKAGE.glob("data/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
            yield from (package for name in names if (package := name.partition(".")[0]) not in own)


def test_every_optional_package_has_an_extra_that_installs_it():
    found = set(_imported_when_used())
    assert found and found <= set(EXTRAS)
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    for package, extra in EXTRAS.items():
        if package != "PIL":  # matplotlib brings it
            listed = re.search(rf"^{extra} = (\[.*\])$", text, re.MULTILINE).group(1)
            assert f'"{package}' in listed


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("av", ("reconstruct", "CLIP")),
        ("numpy", ("reconstruct", "CLIP")),
        ("matplotlib", ("frames", "CLIP")),
        ("safetensors", ("train",)),
        ("diffusers", ("families",)),
        ("av", ("check", "CLIP", "--family", "wan")),
        ("av", ("encode", "CLIP", "--weights", str(WEIGHTS), "--output", "out")),
        ("safetensors", ("encode", "CLIP", "--weights", str(WEIGHTS), "--output", "out")),
        ("diffusers", ("traffic",)),
        ("diffusers", ("plan", "--family", "wan")),
        ("diffusers", ("verify", "--family", "wan")),
        ("diffusers", ("bench",)),
        ("matplotlib", ("bench", "--op", "causal_pad3d", "--png", "a.png")),
    ],
)
def test_a_missing_package_is_named_with_its_extra(refuse, folder, clip, monkeypatch, package, arguments):
    monkeypatch.setitem(sys.modules, package, None)
    words = refuse(*(clip if word == "CLIP" else word for word in arguments))
    assert package in words and f"pip install 'causalvae-kernels[{EXTRAS[package]}]'" in words


@pytest.mark.parametrize("command", ["plan", "verify"])
def test_one_vocabulary_of_families(refuse, command):
    """No empty name, no models of images or sound."""
    words = refuse(command, "--family", "nobody")
    listed = re.search("expected one of (.*), or the name", words).group(1).split(", ")
    assert listed == sorted(short_name(name) for name in families()) and all(listed)
    assert not [name for name in listed if "Audio" in name or "Temporal" in name]
    for name in listed:
        assert family_class(name.upper()) in families()


PLAIN_TERMINAL = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def _python(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **PLAIN_TERMINAL}, capture_output=True, timeout=300
    )
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    return done.stdout.decode("ascii")


@pytest.mark.parametrize(
    "command",
    quick([("info",), ("explain", "causal_conv3d", "--shape", "1,8,3,16,16"), ("--help",)], [("--help",)]),
    ids=" ".join,
)
def test_a_terminal_without_unicode(command):
    text = _python("-m", "causalvae_kernels", *command)
    if command[0] == "explain":
        assert "1x8x3x16x16" in text
    elif command[0] == "--help":
        assert "reconstruct" in text


@pytest.mark.exhaustive
def test_characters_that_no_encoding_has():
    code = "from causalvae_kernels.cli.console import accept_every_character as a; a(); "
    assert _python("-c", code + r"print('\xe9 \xd7 \u2192 \u2026\udc80')") == "? x -> ...?\n"


@pytest.mark.parametrize("value", ["nonsense", "-1", "9" * 5000, "²"], ids=lambda value: value[:8])
@pytest.mark.parametrize("name", [v.name for v in TABLE if v.choices or v.number])
def test_info_marks_every_wrong_variable(run, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    result = run("info", "--json")
    assert result.code == 0, (result.stderr, result.exception)
    (row,) = (row for row in json.loads(result.stdout)["environment"] if row["name"] == name)
    assert row["value"] == value and "expected" in row["problem"]
    assert run("info").code == 0


def test_info_marks_a_variable_that_nobody_reads(run, monkeypatch):
    monkeypatch.setenv("CAUSALVAE_KERNELS_BAKEND", "aten")
    rows = json.loads(run("info", "--json").stdout)["environment"]
    (row,) = (row for row in rows if row["name"] == "CAUSALVAE_KERNELS_BAKEND")
    assert row["value"] == "aten" and "CAUSALVAE_KERNELS_BACKEND" in row["problem"]
    assert "CAUSALVAE_KERNELS_BAKEND" in run("info").stdout


def test_without_a_terminal_a_line_comes_from_time_to_time(capfd):
    with progress_bar(seconds=0.05) as bar:
        task = bar.add_task("encoding", total=7)
        bar.update(task, completed=3)
        time.sleep(0.5)
    lines = capfd.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 10 and all(re.fullmatch(r"encoding 3/7, \d+ s", line) for line in lines)
    time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_short_work_without_a_terminal_is_silent(capfd):
    with progress_bar() as bar:
        bar.add_task("short", total=None)
    assert capfd.readouterr() == ("", "")
