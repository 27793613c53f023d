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
    console = stderr()
    return _Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        seconds=seconds,
        console=console,
        transient=True,
        # Few refreshes: the thread that draws the bar takes time from what is measured.
        refresh_per_second=2,
        disable=not console.is_terminal,
    )
