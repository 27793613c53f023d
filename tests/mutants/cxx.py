"""The functions of a C++ file, found by their braces: enough for sources that clang-format has laid out."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NOISE = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])\'|^[ \t]*#(?:\\\n|[^\n])*',
    re.DOTALL | re.MULTILINE,
)
_NOT_A_NAME = {"__attribute__", "decltype", "alignas", "noexcept", "requires"}


def blank(source: str) -> str:
    """Return the source with spaces for comments, strings and preprocessor lines; positions stay."""
    return _NOISE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), source)


def _name(head: str) -> str | None:
    """Return the name of the function whose text before the brace is `head`."""
    for match in re.finditer(r"((?:\w+::)*~?(?:operator\s*[^\s\w(]+|operator\s*\(\)|\w+))\s*\(", head):
        if match[1] not in _NOT_A_NAME:
            return re.sub(r"\s", "", match[1])
    return None


def functions(source: str) -> Iterator[tuple[str, int, int]]:
    """Return the name (with its class), first and last line of every function."""
    text = blank(source)
    scopes: list[str | None] = []  # None: a function or what is in one
    start: tuple[str, int] | None = None
    head_from = 0
    for match in re.finditer(r"[{};]", text):
        at = match.start()
        if match[0] == "{":
            head = text[head_from:at].strip()
            kind = re.search(r"\b(namespace|struct|class|union|enum|extern)\b(?:\s+class)?\s*(\w*)", head)
            inside = None in scopes
            if inside:
                scopes.append(None)
            elif "(" in head and (name := _name(head)) and not head.endswith("="):
                scopes.append(None)
                prefix = [s for s in scopes if s]
                begin = head_from + len(text[head_from:at]) - len(text[head_from:at].lstrip())
                start = ("::".join([*prefix, name]), text.count("\n", 0, begin) + 1)
            elif kind and kind[1] != "enum" and "=" not in head:
                scopes.append(kind[2] if kind[1] in ("struct", "class", "union") else "")
            else:
                scopes.append(None)
        elif match[0] == "}" and scopes:
            scopes.pop()
            if start is not None and None not in scopes:
                yield (*start, text.count("\n", 0, at) + 1)
                start = None
        if None not in scopes:
            head_from = at + 1
