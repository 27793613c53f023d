"""Covering sets of cases: every pair of values of two axes together at least once, instead of every product.

A fault that depends on one axis or on two of them is seen as by the full product; where three axes interact,
name two of them as one axis of pairs, or parametrise over one of them beside this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from allpairspy import AllPairs


def pairs(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise a test over rows that hold each pair of values of two axes at least once.

    Args:
        **axes: The values by the name of the test's argument, at least two axes. An axis `backend` of pairs
            (name, instruction set) is handed to the fixture of that name.
    """
    to_fixture = [n for n, values in axes.items() if n == "backend" and isinstance(next(iter(values)), tuple)]
    rows = [tuple(row) for row in AllPairs([list(values) for values in axes.values()])]
    names = ["-".join(word_for(value) for value in row) for row in rows]
    return pytest.mark.parametrize(tuple(axes), rows, ids=names, indirect=to_fixture)


def quick(values: Iterable[Any], chosen: Iterable[Any]) -> list[Any]:
    """Return values to parametrise over; those that are not chosen are left to `make test-all`."""
    chosen = list(chosen)
    return [v if v in chosen else pytest.param(v, marks=pytest.mark.exhaustive) for v in values]


def quick_rows(rows: Iterable[tuple[Any, ...]], chosen: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return what `quick` does, for a parametrisation over several names."""
    chosen = list(chosen)
    return [pytest.param(*r, marks=() if r in chosen else pytest.mark.exhaustive) for r in rows]


def word_for(value: Any) -> str:
    """Return the words that stand for a value in the id of a test."""
    if isinstance(value, torch.dtype | torch.memory_format):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return "-".join(str(part) for part in value if part)
    return str(getattr(value, "name", value))
