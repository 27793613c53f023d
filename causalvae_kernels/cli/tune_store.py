"""Where `tune` keeps what it measures: the user's cache, or a file that is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from rich.markup import escape

from ..core import own_measurements
from ..core.errors import InvalidInput
from ..core.outputs import check_outputs, written_whole
from ..core.tuned import Measurement, Record, keep_own, read_own, read_record
from .console import stdout


class Store(Protocol):
    """Attributes: `kept`: what an earlier run measured and this one does not."""

    kept: list[Measurement]

    def save(self, measured: Sequence[Measurement]) -> None:
        """Keep what was measured so far, so that an interruption loses nothing."""

    def finish(self) -> Path:
        """Put everything in its place, and return it."""


class Cache:
    """The user's own: a file for each measurement, written as it comes.

    Args:
        op: Name of the op.
        head: What the measurements are of.
        resume: Keep all that is there; else nothing is taken as known.
    """

    def __init__(self, op: str, head: Record, resume: bool) -> None:
        self._op, self._architecture, self._saved = op, head.isa, 0
        self.kept = list(read_own(op, head.isa).values()) if resume else []

    def save(self, measured: Sequence[Measurement]) -> None:
        """Write what is new of the measurements so far."""
        for measurement in measured[self._saved :]:
            keep_own(self._op, self._architecture, measurement)
        self._saved = len(measured)

    def finish(self) -> Path:
        """Return the cache."""
        return own_measurements.folder()


class File:
    """One file of an op, such as the package brings.

    Args:
        path: The file.
        head: What the measurements are of.
        resume: Keep all that it, or an interrupted run, holds.
        replaces: Tells which measurements this run makes anew; None: it makes all.

    Raises:
        BadMeasurements: The file cannot be read.
        InvalidInput: It comes from another machine, and its times cannot stand beside new ones.
    """

    def __init__(
        self, path: Path, head: Record, resume: bool, replaces: Callable[[Measurement], bool] | None
    ) -> None:
        self._path, self._head = path, head
        self._partial = path.with_name(f"{path.name}.partial")
        before = self._partial if resume and self._partial.exists() else path
        self.kept = []
        if before.exists() and (resume or replaces is not None):
            record = read_record(before)
            if (then := _where(record)) != (now := _where(head)):
                raise InvalidInput(
                    f"{before} was measured with {then}, and here it is {now}: write another file with "
                    "--output, or measure everything, without --resume, --missing, --dtype and --kernel"
                )
            self.kept = [m for m in record.measurements if resume or not replaces(m)]
        path.parent.mkdir(parents=True, exist_ok=True)

    def save(self, measured: Sequence[Measurement]) -> None:
        """Write all measurements so far into a file beside it."""
        text = replace(self._head, measurements=(*self.kept, *measured)).text()
        with written_whole(self._partial) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def finish(self) -> Path:
        """Replace the file, and return it."""
        if self._partial.exists():
            os.replace(self._partial, self._path)
        return self._path


def open_store(
    op: str,
    output: Path | None,
    head: Record,
    resume: bool,
    replaces: Callable[[Measurement], bool] | None,
) -> Store:
    """Return where an op's measurements go; the arguments are those of `Cache` and `File`."""
    return Cache(op, head, resume) if output is None else File(output, head, resume, replaces)


def check_store(output: Path | None) -> None:
    """Refuse a place that cannot be written, before any work.

    Raises:
        InvalidInput: It cannot.
    """
    place, names = (own_measurements.folder(), []) if output is None else (output.parent, [output.name])
    check_outputs(place, names, overwrite=True)


def say_where(store: Store, measured: int) -> None:
    """Print how many measurements there are, and where."""
    place = store.finish()
    total = len(store.kept) + measured
    stdout().print(f"{measured} measured now, {total} in {escape(str(place))}", soft_wrap=True)


def _where(record: Record) -> str:
    """Return what must be equal for times to stand beside each other."""
    machine, torch_version = record.machine, record.machine.get("versions", {}).get("torch")
    if machine.get("gpus"):
        names = ", ".join(str(gpu.get("name")) for gpu in machine["gpus"])
        return f"{names}, torch {torch_version}"
    threads = machine.get("threads")
    return f"{machine.get('processor')}, {record.isa}, {threads} threads, torch {torch_version}"
