"""Reads and writes the committed list."""

from __future__ import annotations

import json
import os
from typing import Any

from .find import LIST


def read() -> list[dict[str, Any]]:
    """Return the mutants of the list; none where there is no list yet."""
    return json.loads(LIST.read_text(encoding="utf-8")) if LIST.exists() else []


def write(mutants: list[dict[str, Any]]) -> None:
    """Replace the list in one step: an interrupted run leaves a whole one."""
    text = json.dumps(mutants, indent=1, ensure_ascii=False) + "\n"
    partial = LIST.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, LIST)
