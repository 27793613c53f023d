"""C++ mutants: changes of one token in the bodies of functions that the CPU module is made of."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from . import cxx
from .find import Function

# The processor's own speed and large pages change no result; what GPUs alone run is not judged here.
_NOT_JUDGED = re.compile(r"gpu_norms|rehearsal|huge_pages|rates|isa\.|check")
# A refusal, what is known before the run, a hint to the cache.
_LEFT_OUT = re.compile(
    r"throw|require|check|static_assert|prefetch|template|catch|sizeof|std::to_string|using "
)
_TRUE = re.compile(r"__GNUC__|_OPENMP|AVX2|__F16C__|__has_builtin|CVK_SHUFFLE|__linux__")
_FALSE = re.compile(r"!defined|CUDA|AVX512|ifndef")

# kind: pattern of the token, what takes its place. clang-format puts spaces around binary operators alone.
TOKENS: dict[str, list[tuple[str, str]]] = {
    "bound": [
        (r"(?<= )<(?= )", "<="),
        (r"(?<= )<=(?= )", "<"),
        (r"(?<= )>=(?= )", ">"),
        (r"(?<= )>(?= )", ">="),
    ],
    "sign": [(r"(?<=[\w)\]] )\+(?= )", "-"), (r"(?<=[\w)\]] )-(?= )", "+")],
    "comparison": [
        (r"(?<= )==(?= )", "!="),
        (r"(?<= )!=(?= )", "=="),
        (r"(?<= )&&(?= )", "||"),
        (r"(?<= )\|\|(?= )", "&&"),
    ],
    "index": [(r"(?<=\w\[)([a-z]\w*)(?=\])", r"\1 + 1"), (r"(?<=\w\[)(\d)(?=\])", r"\1 + 1")],
    "number": [
        (r"(?<=[ ({])1(?=[;,)} ])", "2"),
        (r"(?<=[ ({])0(?=[;,) ])", "1"),
        (r"(?<=[ ({])2(?=[;,)} ])", "1"),
    ],
    "border": [(r"\bmin_of\b", "max_of"), (r"\bmax_of\b", "min_of"), (r"std::min\b", "std::max")],
    "state": [(r"(?<= )\+=(?= )", "="), (r"(?<= )\+=(?= )", "-=")],
}
_WHOLE = re.compile(r"(if \(.*\) )?(\w(?:[\w.]|->|\[[^\]]*\])* [+\-]?= .*|\w[\w<>:]*\(.*\));")


def _judged_lines(source: str) -> Iterator[bool]:
    """Tell of every line whether the compiler sees it where the mutants are judged: x86 with AVX2."""
    branches: list[bool] = []
    for line in source.splitlines():
        if directive := re.match(r"\s*#\s*(if|elif|else|endif)(.*)", line):
            if directive[1] == "if":
                text = line.strip()
                branches.append(not _FALSE.search(text) and bool(_TRUE.search(text)))
            elif directive[1] == "endif":
                branches.pop()
            elif directive[1] == "else":
                branches[-1] = not branches[-1]
            else:
                branches[-1] = not branches[-1] and bool(_TRUE.search(line))
        yield all(branches)


class Source:
    """A file, and the changes that can be made in it."""

    def __init__(self, root: Path, path: str) -> None:
        self.path, self.text = path, (root / path).read_text(encoding="utf-8")
        self.functions = [Function(path, *f) for f in cxx.functions(self.text)]

    @functools.cached_property
    def changes(self) -> list[tuple[Function, str, str, int]]:
        """Return (function, kind, new text, line's number) of every change in a function's body."""
        code, raw = cxx.blank(self.text).splitlines(), self.text.splitlines()
        judged = list(_judged_lines(self.text))
        found = []
        for function in self.functions:
            if function.name in ("min_of", "max_of"):  # of equal numbers either one
                continue
            opened = next(n for n in range(function.first, function.last + 1) if "{" in code[n - 1])
            for number in range(opened, function.last + 1):
                line, start = code[number - 1], code[number - 1].find("{") if number == opened else -1
                if not judged[number - 1] or _LEFT_OUT.search(line):
                    continue
                for kind, after in self._changes_of(line, start):
                    comment = raw[number - 1][len(line.rstrip()) :] if line.rstrip() else ""
                    found.append((function, kind, after.strip() + comment.rstrip(), number))
                previous = next((c for c in reversed(code[: number - 1]) if c.strip()), "").rstrip()
                if number > opened and _WHOLE.fullmatch(line.strip()) and previous.endswith((";", "{", "}")):
                    found.append((function, "statement", ";", number))
        return found

    @staticmethod
    def _changes_of(line: str, start: int) -> Iterator[tuple[str, str]]:
        for kind, rules in TOKENS.items():
            for pattern, after in rules:
                for match in re.finditer(pattern, line):
                    if match.start() > start:
                        yield kind, line[: match.start()] + match.expand(after) + line[match.end() :]

    def make(self, after: str, number: int) -> tuple[int, str]:
        """Return number and new text of the line."""
        return number, after


def groups(root: Path) -> dict[str, list[Source]]:
    """Return the files of every folder that the CPU module is made of."""
    folders = {"cpu": "csrc/cpu", "simd": "csrc/cpu/simd", "common": "csrc/common"}
    found = {}
    for name, folder in folders.items():
        paths = sorted(p for p in (root / folder).iterdir() if p.suffix in (".cpp", ".h"))
        found[name] = [
            Source(root, p.relative_to(root).as_posix()) for p in paths if not _NOT_JUDGED.search(p.name)
        ]
    return found
