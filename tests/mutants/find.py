"""Finds the place of a mutant: a line of a function, wherever the function stands by now.

A mutant names its function, the line before and after the change, and which of the function's equal lines it
is. So the list survives moved functions and files, and renumbered lines.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cxx

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.json")
FOLDERS = {"python": "causalvae_kernels", "c++": "csrc"}


class Gone(LookupError):
    """The function or its line is not in the tree any more, or in several places."""


@dataclass(frozen=True)
class Function:
    """A function of the tree and the lines that it takes, the first and the last one included."""

    path: str  # below the root
    name: str
    first: int
    last: int


def functions_of_python(source: str) -> Iterator[tuple[str, int, int]]:
    """Return the qualified name, first and last line of every function."""

    def visit(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = (*scope, child.name)
                if not isinstance(child, ast.ClassDef):
                    yield ".".join(inner), child.lineno, child.end_lineno or child.lineno
                yield from visit(child, inner)
            else:
                yield from visit(child, scope)

    return visit(ast.parse(source), ())


@functools.cache
def lines_of(root: Path, path: str) -> tuple[str, ...]:
    """Return the lines of a file."""
    return tuple((root / path).read_text(encoding="utf-8").splitlines())


@functools.cache
def functions(root: Path, language: str) -> tuple[Function, ...]:
    """Return every function of the package, or of the C++ sources."""
    read, suffixes = (
        (functions_of_python, (".py",)) if language == "python" else (cxx.functions, (".cpp", ".h"))
    )
    paths = sorted(p for p in (root / FOLDERS[language]).rglob("*") if p.suffix in suffixes)
    found = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        found += [Function(name, *function) for function in read("\n".join(lines_of(root, name)))]
    return tuple(found)


@functools.cache
def _by_name(root: Path, language: str) -> dict[str, list[Function]]:
    found: dict[str, list[Function]] = {}
    for function in functions(root, language):
        found.setdefault(function.name, []).append(function)
    return found


def module_of(path: str, language: str) -> str:
    """Return the module that a file is, below its folder: "core.packed", "cpu/group_norm.cpp"."""
    below = Path(path).relative_to(FOLDERS[language])
    return ".".join(below.with_suffix("").parts) if language == "python" else below.as_posix()


def locate(root: Path, mutant: dict[str, Any]) -> tuple[str, int]:
    """Return the file and the number of the line that the mutant changes.

    Raises:
        Gone: There is none, or more than one.
    """
    language, before = mutant["language"], mutant["before"]
    places = []
    for function in _by_name(root, language).get(mutant["function"], []):
        lines = lines_of(root, function.path)
        hits = [n for n in range(function.first, function.last + 1) if lines[n - 1].strip() == before]
        if len(hits) > mutant["occurrence"]:
            places.append((function.path, hits[mutant["occurrence"]]))
    near = [place for place in places if module_of(place[0], language) == mutant["module"]]
    places = near or places
    if len(places) != 1:
        raise Gone(f"{mutant['id']}: {mutant['function']} has {before!r} in {len(places)} places")
    return places[0]


def changed(root: Path, mutant: dict[str, Any]) -> tuple[str, int, str]:
    """Return the file, the line's number, and the whole text of the file with the mutant's change."""
    path, number = locate(root, mutant)
    lines = list(lines_of(root, path))
    line = lines[number - 1]
    lines[number - 1] = line[: len(line) - len(line.lstrip())] + mutant["after"]
    return path, number, "\n".join([*lines, ""])
