"""The errors that the package raises on purpose; each carries a whole sentence."""

from __future__ import annotations


class CausalVAEError(Exception):
    """Base class of every error that this package raises on purpose."""


class InvalidInput(CausalVAEError, ValueError):
    """An argument cannot be used; the message says what was given, what is expected, and what to do."""


class BackendUnavailable(CausalVAEError, RuntimeError):
    """A backend was asked for that cannot run this call; the message lists every backend's reason."""


class BadMeasurements(CausalVAEError, ValueError):
    """A file of measurements cannot be used; the message names it and says what to do."""


def in_a_line(error: Exception) -> str:
    """Return the kind and the first line of any error, for a list of what failed."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
