"""Chooses the tests that can see a mutant: those that ran its line, near and quick ones first."""

from __future__ import annotations

import ast
import functools
import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .find import Gone, lines_of, locate
from .scratch import WORK

MAP = WORK / "map"
FAILING = WORK / "failing.txt"  # tests that fail without a mutant, too
# What cannot see a mutant here: tests of compiled GPU code, of builds from the sources, of sources as texts.
_BLIND = re.compile(r"tests/(aot|gpu|mutants|layering)/|tests/core/test_build")
_ISAS = {"portable", "avx2", "avx512"}


@dataclass(frozen=True)
class Batch:
    """Tests that run in one process; without ids all tests of the files."""

    files: tuple[str, ...]
    tests: tuple[str, ...] | None
    seconds: float | None  # as predicted
    slowest: float | None


def _words(path: str) -> set[str]:
    return set(re.findall(r"[a-z]+\d*[a-z]*", re.sub(r"^test_|\.\w+$", "", path.lower())))


_KERNELS = {"conv": "conv winograd", "winograd": "conv winograd", "group": "norm norms", "rms": "norm norms"}
_KERNELS |= {"pad": "pad pad3d", "pad3d": "pad pad3d", "upsample": "upsample", "norm": "norm norms"}


def distance(mutant: dict[str, Any], file: str) -> int:
    """Return how far a test file is from a mutant: its seconds count that many times."""
    folder, _, name = file.removeprefix("tests/").partition("/")
    words = _words(name)
    if mutant["language"] == "python":
        layer, *modules = mutant["module"].split(".")
        if folder != layer:
            return 6
        return 1 if words & set().union(*({m, *_words(m)} for m in modules)) else 2
    wanted = {w for key in _words(Path(mutant["module"]).stem) for w in _KERNELS.get(key, "").split()}
    if "/test_native" in file or "/test_index" in file:
        return 1 if "common" in mutant["module"] or words & wanted else 2
    if folder in ("ops", "parity"):
        return 1 if words & wanted else 3
    return 8 if folder == "models" else 30


class Coverage:
    """Which tests ran a line, from coverage.py's data with a context for each test."""

    def __init__(self, folder: Path) -> None:
        self._data = sqlite3.connect(
            f"file:{folder / 'coverage.sqlite'}?mode=ro", uri=True, check_same_thread=False
        )
        self.seconds: dict[str, float] = json.loads((folder / "durations.json").read_text(encoding="utf-8"))
        self.tree = folder / "tree"  # the package as it was then

    def tests_of(self, path: str, lines: range) -> set[str]:
        """Return the ids of the tests that ran one of the lines."""
        rows = self._data.execute(
            "select context.context, line_bits.numbits from line_bits join context on context.id = context_id"
            " join file on file.id = file_id where file.path = ? or file.path like ?",
            (path, f"%/{path}"),
        )
        return {
            name.rpartition("|")[0] or name
            for name, bits in rows
            if name and any(n // 8 < len(bits) and bits[n // 8] >> n % 8 & 1 for n in lines)
        }


@functools.cache
def coverage() -> Coverage | None:
    """Return the map, if there is one: `run.py --map` makes it."""
    return Coverage(MAP) if (MAP / "coverage.sqlite").exists() else None


def failing() -> set[str]:
    """Return the tests that were seen to fail without a mutant."""
    return set(FAILING.read_text(encoding="utf-8").splitlines()) if FAILING.exists() else set()


def statement_at(source: str, number: int) -> range:
    """Return the lines of the statement at a line; of one that holds others, those before them."""
    found = range(number, number + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= number <= (node.end_lineno or node.lineno):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            if number <= max(end, node.lineno):
                found = range(node.lineno, max(end, node.lineno) + 1)
    return found


def _seeing(mutant: dict[str, Any], isa: str) -> set[str] | None:
    """Return the ids of the tests that can see a mutant, or None where no map tells."""
    known = coverage()
    if known is None:
        return None
    if mutant["language"] == "c++":
        others = _ISAS - {isa} | {"aten", "reference", "triton"}
        return {
            test
            for test in known.seconds
            if re.match(r"tests/(core/test_(native|index)|ops/|parity/|models/)", test)
            and not others & set(re.split(r"[\[\]\-:/]", test))
        }
    try:
        path, number = locate(known.tree, mutant)
    except Gone:
        return None
    source = "\n".join(lines_of(known.tree, path))
    return known.tests_of(path, statement_at(source, number)) & set(known.seconds)


def _batch(tests: list[str], seconds: dict[str, float]) -> Batch:
    files = tuple(dict.fromkeys(test.partition("::")[0] for test in tests))
    times = [seconds[test] for test in tests]
    return Batch(files, tuple(tests), sum(times), max(times))


def batches(
    root: Path, mutant: dict[str, Any], isa: str, first: float, limit: float
) -> tuple[list[Batch], str]:
    """Return the batches of tests to run, and how many of the tests that can see the mutant they hold.

    Args:
        root: The tree.
        mutant: The mutant.
        isa: The instruction set that C++ mutants are compiled for.
        first: Predicted seconds of the first batch.
        limit: Predicted seconds of all.
    """
    seeing = _seeing(mutant, isa)
    if seeing is None:
        return list(_by_name(root, mutant)), "those of the nearest files"
    seconds = coverage().seconds
    tests = [test for test in seeing - failing() if not _BLIND.search(test)]

    def order(test: str) -> tuple[int, str, float]:
        weight = max(seconds[test], 0.01) * distance(mutant, test.partition("::")[0])
        return int(weight * 8).bit_length(), test.partition("::")[0], weight

    parts: list[list[str]] = [[], []]
    total = 0.0
    for test in sorted(tests, key=order):
        total += seconds[test]
        if total <= limit:
            parts[total > first].append(test)
    held = len(parts[0]) + len(parts[1])
    return [_batch(part, seconds) for part in parts if part], f"{held} of {len(tests)}"


def _by_name(root: Path, mutant: dict[str, Any]) -> Iterator[Batch]:
    """Without a map: the test files of the module's name, and those of its folder."""
    files = sorted(p.relative_to(root).as_posix() for p in (root / "tests").rglob("test_*.py"))
    for ring in range(1, 4):
        near = tuple(f for f in files if not _BLIND.search(f) and distance(mutant, f) == ring)
        if near:
            yield Batch(near, None, None, None)
