"""`frames`: what it writes, and bad input by name."""

import json

import pytest

from causalvae_kernels.cli.frames import OUTPUTS, parse_counts
from causalvae_kernels.core.errors import InvalidInput

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.filterwarnings("ignore:causalvae_kernels runs without its native CPU kernels")


def test_table_plot_and_report(run, clip, folder):
    result = run("frames", clip, "--counts", "1-3,9", "--output", "out", "--threads", 1)
    assert result.code == 0, result.stderr
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(OUTPUTS)
    table = (folder / "out" / "frames.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["frames", "1", "2", "3", "9"]
    report = json.loads((folder / "out" / "frames.json").read_text())
    assert [row["num_frames"] for row in report["rows"]] == [1, 2, 3, 9]
    assert [row["any"]["num_out"] for row in report["rows"]] == [1, 2, 3, 9]
    assert (folder / "out" / "frames.png").read_bytes().startswith(b"\x89PNG")
    assert "small trained CogVideoX VAE" in result.stdout
    again = run("frames", clip, "--counts", "1", "--output", "out")
    assert again.code == 2 and "--overwrite" in again.stderr
    assert (folder / "out" / "frames.md").read_text() == table


def test_counts():
    assert parse_counts("1-3") == [1, 2, 3]
    assert parse_counts("17, 13,16-17") == [13, 16, 17]
    for text in ("", "0-3", "a", "3-1", "1-", "-3", "1.5"):
        with pytest.raises(InvalidInput, match="--counts: got"):
            parse_counts(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{clip}", "--counts", "x"), "--counts: got 'x', expected positive numbers like 1-33 or 13,16,17"),
        (("{clip}", "--counts", "10"), "has 12 frames, expected at least 17"),
        (("{clip}", "--counts", "9", "--start", "-1"), "--start: got -1"),
        (("{clip}", "--counts", "9", "--size", "21x13"), "the nearest is --size 20x12"),
        (("{clip}", "--counts", "9", "--threads", "0"), "--threads: got 0, expected at least 1"),
        (("{clip}", "--counts", "9", "--backend", "metal"), "--backend: got 'metal'"),
        (("missing.mp4",), "missing.mp4: no such file"),
        (("{clip}", "--counts", "9", "--weights", "nowhere"), "weights nowhere: no such folder"),
    ],
)
def test_bad_input(arguments, words, refuse, clip, folder):
    assert words in refuse("frames", *(a.replace("{clip}", str(clip)) for a in arguments))
    assert list(folder.iterdir()) == []
