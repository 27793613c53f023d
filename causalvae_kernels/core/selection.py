"""Which backend runs a call: argument > `use_backend()` > environment > default order.

`use_backend()` and the environment apply to every op that has the backend; the others keep their default
order. One predicate, the backend's `why_not`, serves choosing and forcing. `auto` tries the backend that was
measured to be faster for such calls, if there is one, then walks the op's order, and skips every backend
that answers with a sentence; a backend asked for by name raises with that sentence instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import env, native
from .checks import check_choice
from .errors import BackendUnavailable
from .setting import Setting
from .traffic import Work
from .tuned import FASTER, Measurement

if TYPE_CHECKING:
    from .backend import Backend
    from .op import Op

SETTING = Setting("causalvae_kernels_backend")
_said_without_native = False


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Set the backend of every op called inside the context; an op that has no such backend ignores it.

    Args:
        name: "reference", "aten", "cpu", "triton", "cuda", or "auto" for the default order.

    Raises:
        InvalidInput: No backend has this name. A backend that cannot run a call raises
            `BackendUnavailable` at that call.
    """
    check_choice("use_backend", "name", name, env.BACKEND.choices)
    with SETTING.hold(name):
        yield


@dataclass(frozen=True)
class Explanation:
    """Why a call runs where it does.

    Attributes:
        op: Name of the op.
        chosen: Name of the backend that runs it; None when the backend asked for cannot.
        source: What decided: "argument", "use_backend()", "environment" or "default".
        rows: For every backend, its name and a sentence.
        work: The operations and bytes that the call needs, whatever runs it.
    """

    op: str
    chosen: str | None
    source: str
    rows: tuple[tuple[str, str], ...]
    work: Work

    def __str__(self) -> str:
        head = f"{self.op}: {self.chosen or 'nothing'} runs (decided by {self.source}; {self.work})"
        return "\n".join([head, *(f"  {name}: {sentence}" for name, sentence in self.rows)])


def requested_backend(argument: str | None) -> tuple[str, str]:
    """Return the backend's name that was asked for ("auto" if none) and what decided it."""
    if argument:
        check_choice("backend", "backend", argument, env.BACKEND.choices)
        return argument, "argument"
    name = SETTING.get()
    if name is not None:
        return name, "use_backend()"
    name = env.BACKEND.get()
    if name is not None:
        return name, "environment"
    return "auto", "default"


def select(op: Op, args: Any, out: Tensor | None, backend: str | None, precision: str) -> Backend:
    """Return the backend that runs this call.

    Raises:
        BackendUnavailable: The backend asked for cannot run it, or none can; every reason is listed.
    """
    name, _ = _requested_of(op, backend)
    if name == "auto":
        _say_once_without_native()
        for candidate in _order(op, op.measured(args, precision, out)):
            if op.backends[candidate].why_not(args, precision, out) is None:
                return op.backends[candidate]
    elif name in op.backends and op.backends[name].why_not(args, precision, out) is None:
        return op.backends[name]
    raise BackendUnavailable(_refusal(explain_selection(op, args, out, backend, precision), name))


def explain_selection(
    op: Op, args: Any, out: Tensor | None, backend: str | None, precision: str
) -> Explanation:
    """Say which backend runs this call and why each other one does not; runs nothing."""
    name, source = _requested_of(op, backend)
    reasons = {b.name: b.why_not(args, precision, out) for b in op.backends.values()}
    measured = op.measured(args, precision, out) if name == "auto" else None
    candidates = _order(op, measured) if name == "auto" else (name,)
    chosen = next((c for c in candidates if c in reasons and reasons[c] is None), None)
    rows = tuple((b, _sentence(op, b, why, chosen, name, measured)) for b, why in reasons.items())
    if name != "auto" and name not in reasons:
        rows += ((name, f"cannot run this call: {op.name} has no such backend"),)
    return Explanation(op.name, chosen, source, rows, args.work(out))


def is_chosen_freely(op: Op, argument: str | None) -> bool:
    """Tell whether no backend was asked for."""
    return _requested_of(op, argument)[0] == "auto"


def _requested_of(op: Op, argument: str | None) -> tuple[str, str]:
    name, source = requested_backend(argument)
    if name in ("auto", *op.backends) or source == "argument":
        return name, source
    return "auto", "default"


def _order(op: Op, measured: Measurement | None) -> tuple[str, ...]:
    """Return what `auto` tries for a call for which this was measured."""
    if measured is not None and measured.faster:
        return (measured.backend, *op.order)
    return op.order


def _sentence(
    op: Op, backend: str, why_not: str | None, chosen: str | None, name: str, measured: Measurement | None
) -> str:
    if why_not is not None:
        return f"cannot run this call: {why_not}"
    if measured is not None and backend == measured.backend:
        return _measured_sentence(measured, backend == chosen)
    if backend == chosen:
        return "runs this call"
    if name != "auto":
        return "can run this call, but another was asked for"
    if measured is not None and (backend, chosen) == (measured.default, measured.backend):
        return f"can run this call, but {chosen} was measured to be faster"
    if backend in op.order:
        return "can run this call, but another backend is preferred"
    return (
        "can run this call, but auto takes only what was measured to be faster, and no measurement covers it"
    )


def _measured_sentence(measured: Measurement, chosen: bool) -> str:
    if chosen:
        return (
            f"runs this call: measured {measured.ratio:.2f} times as fast as {measured.default} "
            f"({measured.figures})"
        )
    if measured.objection is not None:
        return f"can run this call, but was {measured.objection}"
    return (
        f"can run this call, but was measured at {measured.ratio:.2f} times the speed of {measured.default} "
        f"({measured.figures}), and auto asks for more than {FASTER}"
    )


def _refusal(explanation: Explanation, requested: str) -> str:
    sentences = dict(explanation.rows)
    asked = "no backend can run this call"
    if requested != "auto":
        asked = f"backend {requested!r} {sentences.pop(requested)}"
    others = "; ".join(f"{name} {sentence}" for name, sentence in sentences.items())
    return f"{explanation.op}: {asked} (decided by {explanation.source}). The others: {others}"


def _say_once_without_native() -> None:
    global _said_without_native
    if _said_without_native:
        return
    _said_without_native = True
    reason = native.why_no_cpu()
    if reason is not None:
        warnings.warn(
            f"causalvae_kernels runs without its native CPU kernels: {reason}", RuntimeWarning, stacklevel=2
        )
