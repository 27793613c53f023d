"""The bar of `encode` and `decode`: clips, frames, and lines where there is no terminal."""

import re
import time

from causalvae_kernels.cli import console


def test_without_a_terminal_a_line_comes_from_time_to_time(capfd, monkeypatch):
    monkeypatch.setattr(console, "_SECONDS", 0.05)
    with console.ClipBar() as bar:
        bar.begin("looking at clips", 4)
        bar.count(4, 60)
        bar.begin("encoding", 4, 60)
        bar.count(2, 20, 10)
        time.sleep(0.3)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= 2
    # Ten frames were there before: 50 are left to do, of which 20 are done.
    assert re.fullmatch(r"encoding, 2/4 clips, 20 frames 20/50, \d+ s", lines[-1])


def test_other_processes_are_silent(capfd, monkeypatch):
    monkeypatch.setattr(console, "_SECONDS", 0.02)
    with console.ClipBar(enabled=False) as bar:
        bar.begin("encoding", 4, 60)
        bar.count(2, 20)
        time.sleep(0.1)
    assert capfd.readouterr() == ("", "")
