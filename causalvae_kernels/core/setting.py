"""A setting that holds inside of a `with`, in this thread, and that torch.compile can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch


class Setting:
    """A word, or None where none was set.

    torch.compile reads no ContextVar, but it guards on attributes: it takes what was last set in any thread.
    """

    def __init__(self, name: str) -> None:
        """Set nothing yet."""
        self._current: ContextVar[str | None] = ContextVar(name, default=None)
        self.current = self._current.get
        self._traced: str | None = None

    def get(self) -> str | None:
        """Return what holds here."""
        return self._traced if torch.compiler.is_compiling() else self._current.get()

    @contextmanager
    def hold(self, value: str) -> Iterator[None]:
        """Let this hold inside of the context."""
        token, before = self._current.set(value), self._traced
        self._traced = value
        try:
            yield
        finally:
            self._traced = before
            self._current.reset(token)
