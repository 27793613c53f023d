"""Consoles and progress: what the terminal, a file or a pipe can show."""

from __future__ import annotations

import codecs
import os
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_WIDTH_OF_A_FILE = 120
_SECONDS = 30.0

# What our words hold beyond ASCII, for a terminal that does not know it.
_PLAIN = {"×": "x", "…": "...", "→": "->", "⁻": "^-", "³": "3", "–": "-", "—": "-", "−": "-", "’": "'"}
_HANDLER = "causalvae_kernels.plain"


def accept_every_character() -> None:
    """Let stdout and stderr write plain characters for those that their encoding does not have."""
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_HANDLER)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


def stdout() -> Console:
    """Return a console for results; made on each call, because tests replace the stream.

    A file or a pipe has no width; tables get enough of it there to keep their lines whole.
    """
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_OF_A_FILE
    return console


def stderr() -> Console:
    """Return a console for progress and warnings."""
    return Console(stderr=True, highlight=False)


class _Progress(Progress):
    """A bar on a terminal; elsewhere a line from time to time, so that a log shows that work goes on."""

    def __init__(self, *columns: Any, seconds: float, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._seconds, self._done, self._began = seconds, threading.Event(), time.monotonic()

    def start(self) -> None:
        super().start()
        if self.disable:
            self._began = time.monotonic()
            threading.Thread(target=self._tell, name="progress", daemon=True).start()

    def stop(self) -> None:
        self._done.set()
        super().stop()

    def _tell(self) -> None:
        while not self._done.wait(self._seconds):
            for task in self.tasks:
                count = "" if task.total is None else f" {task.completed:.0f}/{task.total:.0f}"
                elapsed = time.monotonic() - self._began
                print(f"{task.description}{count}, {elapsed:.0f} s", file=sys.stderr, flush=True)


def progress_bar(seconds: float = _SECONDS) -> Progress:
    """Return a bar for stderr, which vanishes at its end.

    Args:
        seconds: Between two lines where stderr is no terminal and no bar is drawn.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return _bar(*columns, seconds=seconds)


class ClipBar:
    """A bar of frames that says how many clips are done, frames per second and the time left."""

    def __init__(self, *, enabled: bool = True) -> None:
        """Show nothing yet; `enabled` is False in all processes but one."""
        columns = (TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = _bar(TextColumn("{task.description}"), BarColumn(), *columns, seconds=_SECONDS)
        self._enabled, self._task, self._began = enabled, None, 0.0
        self._words, self._clips, self._frames = "", 0, None

    def __enter__(self) -> ClipBar:
        """Return the bar."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self.stop()

    def begin(self, words: str, clips: int, frames: int | None = None) -> None:
        """Begin a part of the work: what it is, the number of clips, and of frames where that is known."""
        if not self._enabled:
            return
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(words, total=None, rate="")
        self._words, self._clips, self._frames, self._began = words, clips, frames, time.monotonic()
        self._bar.reset(self._task, total=clips if frames is None else frames, rate="")
        self.count(0, 0)

    def count(self, clips: int, frames: int, left_out: int = 0) -> None:
        """Say how many clips and frames are done; `left_out` frames had been done before."""
        if self._task is None:
            return
        words = f"{self._words}, {clips}/{self._clips} clips, {frames} frames"
        if self._frames is None:
            self._bar.update(self._task, description=words, completed=clips)
            return
        speed = frames / max(time.monotonic() - self._began, 1e-9)
        total = max(self._frames - left_out, frames)
        rate = f"{speed:.1f} frames/s"
        self._bar.update(self._task, description=words, completed=frames, total=total, rate=rate)

    def stop(self) -> None:
        """Remove it."""
        if self._task is not None:
            self._bar.stop()
            self._task = None


def _bar(*columns: Any, seconds: float) -> _Progress:
    console = stderr()
    return _Progress(
        SpinnerColumn(),
        *columns,
        seconds=seconds,
        console=console,
        transient=True,
        # Few refreshes: the thread that draws the bar takes time from what is measured.
        refresh_per_second=2,
        disable=not console.is_terminal,
    )
