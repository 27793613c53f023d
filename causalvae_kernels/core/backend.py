"""`Backend`: one way to run an op, as it is registered with `core.op.Op`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .traffic import Pass
from .tuned import Measurement

Write = Callable[[Tensor, tuple[Any, ...]], bool]
"""`write(out, tensors)` writes the result; False: it cannot now, for lack of room for packed weights."""


def can_always(args: Any, precision: str, out: Tensor | None) -> str | None:
    """The `why_not` of a backend that runs every call."""
    return None


def always(args: Any, precision: str) -> bool:
    """The `two_sources` of a backend that reads state and frames where they lie, in every call."""
    return True


def never(args: Any, precision: str) -> bool:
    """The `two_sources` of a backend that wants state and frames in one buffer."""
    return False


def nothing_measured(args: Any, precision: str, out: Tensor | None) -> Measurement | None:
    """The `measured` of an op whose kernels were not compared."""
    return None


@dataclass(frozen=True)
class Backend:
    """One way to run an op: `write`, `make`, or both; the op does one by the other.

    Attributes:
        name: "reference", "aten", "cpu", ...
        write: `write(out, args, precision)` writes the result into memory of its shape and dtype, whatever
            its strides.
        make: `make(args, precision)` returns it in memory that it allocates: the framework's operators do.
        why_not: `why_not(args, precision, out)` returns None if the call can run, else a sentence; `out` is
            None for a fresh result.
        two_sources: `two_sources(args, precision)`: whether it reads the state and the frames where they
            lie, so that nothing is gained by writing both into one buffer.
        adds_in_place: Whether a residual may be the destination itself, because each of its elements is read
            before it is written.
        bind: `bind(args, out, must_keep)` returns what runs calls like this one, given addresses alone, or
            None where it cannot; `out` is like the result. With `must_keep` it refuses a call whose packed
            weights would not be kept.
        moves: `moves(args, out)` returns the bytes that it moves. None: it is made of the framework's
            operators, which can be counted one by one.
    """

    name: str
    write: Callable[[Tensor, Any, str], None] | None = None
    make: Callable[[Any, str], Tensor] | None = None
    why_not: Callable[[Any, str, Tensor | None], str | None] = can_always
    two_sources: Callable[[Any, str], bool] = never
    adds_in_place: bool = False
    bind: Callable[[Any, Tensor, bool], Write | None] | None = None
    moves: Callable[[Any, Tensor | None], Sequence[Pass]] | None = None
