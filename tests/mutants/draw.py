"""Draws mutants with a fixed seed into mutants.json: `python -m tests.mutants.draw [--renew]`.

Without an option the list is drawn anew as a whole. `--renew` keeps every mutant that is still found in the
tree, with its verdicts, and draws others for those that are gone or invalid.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from pathlib import Path
from typing import Any

from . import draw_cxx, draw_python
from .find import ROOT, Gone, locate, module_of
from .results import read, write

SEED = 20250
COUNTS = {"python": 123, "c++": 45}
LEAST = 10  # of every folder
_LONG = 40  # lines of a function from which on two of its lines may be changed


def quotas(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Return how many mutants each folder gets: in proportion to its code, and at least `LEAST`."""
    small = {name: LEAST for name, size in sizes.items() if size * count / sum(sizes.values()) < LEAST}
    rest = sum(size for name, size in sizes.items() if name not in small)
    share = {
        name: round(sizes[name] * (count - LEAST * len(small)) / rest) for name in sizes if name not in small
    }
    return small | share


def mutant_of(root: Path, language: str, folder: str, source: Any, change: tuple) -> dict[str, Any] | None:
    """Return the mutant that makes this change, or None where it cannot be told from others."""
    function, kind, name, occurrence = change
    made = source.make(name, occurrence)
    if made is None:
        return None
    number, after = made
    lines = source.text.splitlines()
    before = lines[number - 1].strip()
    same = [n for n in range(function.first, function.last + 1) if lines[n - 1].strip() == before]
    if before == after or number not in same:
        return None
    mutant = {
        "id": "",
        "language": language,
        "module": module_of(source.path, language),
        "function": function.name,
        "before": before,
        "after": after,
        "occurrence": same.index(number),
        "kind": kind,
        "verdicts": {},
        "note": "",
    }
    text = repr([mutant[key] for key in ("module", "function", "before", "after", "occurrence")])
    mutant["id"] = f"{folder}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    try:
        return mutant if locate(root, mutant) == (source.path, number) else None
    except Gone:
        return None


def draw(root: Path, language: str, kept: list[dict[str, Any]], barred: set[str]) -> list[dict[str, Any]]:
    """Return the mutants of a language: those kept, and drawn ones up to each folder's number."""
    groups = (draw_python if language == "python" else draw_cxx).groups(root)
    sizes = {name: sum(len(s.text.splitlines()) for s in sources) for name, sources in groups.items()}
    drawn = []
    for folder, count in quotas(sizes, COUNTS[language]).items():
        chance = random.Random(f"{SEED} {folder}")
        mutants = [m for m in kept if m["id"].startswith(f"{folder}-")]
        changes: dict[Any, list] = {}
        for source in groups[folder]:
            for change in source.changes:
                changes.setdefault((source.path, change[0]), []).append((source, change))
        taken: dict[Any, int] = {}
        while len(mutants) < count and changes:
            keys = list(changes)
            key = chance.choices(keys, [k[1].last - k[1].first + 1 for k in keys])[0]
            kind = chance.choice(sorted({change[1] for _, change in changes[key]}))
            source, change = chance.choice([c for c in changes[key] if c[1][1] == kind])
            changes[key].remove((source, change))
            mutant = mutant_of(root, language, folder, source, change)
            if mutant and mutant["id"] not in barred | {m["id"] for m in mutants}:
                mutants.append(mutant)
                taken[key] = taken.get(key, 0) + 1
            full = taken.get(key, 0) >= (2 if key[1].last - key[1].first >= _LONG else 1)
            if full or not changes[key]:
                del changes[key]
        drawn += mutants
    return drawn


def is_kept(root: Path, mutant: dict[str, Any]) -> bool:
    """Tell whether a mutant is still found, and was not found to be invalid."""
    try:
        locate(root, mutant)
    except Gone as gone:
        print(f"gone: {gone}")
        return False
    return all(verdict["verdict"] != "invalid" for verdict in mutant["verdicts"].values())


def main() -> None:
    """Draw the list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--renew", action="store_true", help="draw only what is gone or invalid")
    before = read() if parser.parse_args().renew else []
    kept = [mutant for mutant in before if is_kept(ROOT, mutant)]
    barred = {mutant["id"] for mutant in before} - {mutant["id"] for mutant in kept}
    mutants = []
    for language in COUNTS:
        mutants += draw(ROOT, language, [m for m in kept if m["language"] == language], barred)
    write(mutants)
    print(f"{len(mutants)} mutants, {len(mutants) - len(kept)} of them new")


if __name__ == "__main__":
    main()
