"""`Op`: the reference gives schema, fake kernel, fallback and oracle; backends are added to it.

An op is one `torch.library` operator. Choosing the backend happens inside that operator, so tracing sees
one opaque call whose output strides depend on the inputs alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import dry_run
from .errors import InvalidInput
from .layout import memory_format_of
from .precision import resolve_precision
from .selection import Explanation, explain_selection, select
from .traffic import Moves
from .tuned import Measurement

NAMESPACE = "causalvae_kernels"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_OPS: dict[str, Op] = {}

# Output strides follow the input's strides, so a compiler must hand over the very strides it traced.
_TAGS = tuple(
    getattr(torch.Tag, tag) for tag in ("needs_exact_strides", "pt2_compliant_tag") if hasattr(torch.Tag, tag)
)


def can_always(*arguments: Any) -> str | None:
    """The `why_not` of a backend that runs every call."""
    return None


def always(*arguments: Any) -> bool:
    """The `two_sources` of a backend that reads state and frames where they lie, in every call."""
    return True


def never(*arguments: Any) -> bool:
    """The `two_sources` of a backend that wants state and frames in one buffer."""
    return False


def nothing_measured(*arguments: Any) -> Measurement | None:
    """The `measured` of an op whose kernels were not compared."""
    return None


@dataclass(frozen=True)
class Backend:
    """One way to run an op.

    Attributes:
        name: "reference", "aten", "cpu", ...
        call: Takes the op's arguments and the precision tier; returns a fresh tensor, or None if the op
            works in place.
        why_not: Takes the same; returns None if `call` can run, else a sentence.
        two_sources: Takes the same; whether it reads the state and the frames where they lie, so that
            nothing is gained by writing both into one buffer.
        adds_in_place: Whether a residual may be the destination itself, because each of its elements is read
            before it is written.
        moves: Takes what `call` takes; returns the bytes that it moves. None: it is made of the framework's
            operators, which can be counted one by one.
    """

    name: str
    call: Callable[..., Tensor | None]
    why_not: Callable[..., str | None] = can_always
    two_sources: Callable[..., bool] = never
    adds_in_place: bool = False
    moves: Moves | None = None


class Op:
    """An operator `torch.ops.causalvae_kernels.<name>` and its backends.

    Args:
        name: Name of the operator; a trailing underscore means that it works in place.
        reference: Pure PyTorch, annotated for `torch.library.infer_schema`. It defines the op.
        prepare: Takes the public function's arguments and returns the operator's, checked.
        backends: All but the reference.
        order: What `auto` tries, in turn; holds no kernel of ours.
        measured: Takes the operator's arguments and the precision tier; returns what was measured for calls
            like this one, or None. `auto` tries a backend that was measured to be faster before `order`.
        layout: Names of the arguments that decide the memory format of the output; in the tier `exact` it
            is the one in which the reference happens to return it.
        mutates: Names of the arguments that are written.
        vjp: `vjp(grad, needs, given, **arguments)` returns a dict of gradients by argument name, composed
            of differentiable aten calls. `needs` holds the names whose gradient is wanted, `given` those
            that were not None. Arguments that are tensors and not in `saves` come as None.
        saves: The tensors that `vjp` needs.
    """

    def __init__(
        self,
        name: str,
        *,
        reference: Callable[..., Any],
        prepare: Callable[..., tuple[Any, ...]],
        backends: Sequence[Backend],
        order: Sequence[str],
        measured: Callable[..., Measurement | None] = nothing_measured,
        layout: Sequence[str] = (),
        mutates: Sequence[str] = (),
        vjp: Callable[..., dict[str, Tensor | None]] | None = None,
        saves: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.reference = reference
        self.prepare = prepare
        self.order = tuple(order)
        self.measured = measured
        first = Backend("reference", lambda *arguments: reference(*arguments[:-1]), adds_in_place=True)
        self.backends = {b.name: b for b in (first, *backends)}
        self._names = tuple(inspect.signature(reference).parameters)
        self._layout = tuple(self._names.index(n) for n in layout)
        self._mutates = tuple(self._names.index(n) for n in mutates)
        self._vjp, self._saves = vjp, frozenset(saves)
        self._register(tuple(mutates))
        self._operator = getattr(getattr(torch.ops, NAMESPACE), name)
        _OPS[name] = self

    def __call__(self, *arguments: Any, backend: str | None = None, precision: str | None = None) -> Any:
        """Run the operator on prepared arguments.

        Where nobody looks on, the backend is called at once: passing the dispatcher and the Python kernels
        that `torch.library` puts around an op costs 50 us a call, as much as a small convolution.
        """
        precision = resolve_precision(precision)
        if _nobody_looks(arguments):
            return self.run(*arguments, backend, precision)
        return self._operator(*arguments, backend or "", precision)

    def choose(self, arguments: Sequence[Any], backend: str | None, precision: str | None) -> Backend:
        """Return the backend that a call with prepared arguments takes.

        Raises:
            BackendUnavailable: The backend asked for cannot run it.
        """
        return select(self, arguments, backend, resolve_precision(precision))

    def explain(
        self, *arguments: Any, backend: str | None = None, precision: str | None = None, **keywords: Any
    ) -> Explanation:
        """Say which backend a call of the public function with these arguments takes; runs nothing."""
        with dry_run.explaining():
            prepared = self.prepare(*arguments, **keywords)
            return explain_selection(self, prepared, backend, resolve_precision(precision))

    def place(self, name: str) -> int | None:
        """Return where an argument of the operator stands, or None: it has no such argument."""
        return self._names.index(name) if name in self._names else None

    def _register(self, mutates: tuple[str, ...]) -> None:
        schema = torch.library.infer_schema(self.reference, mutates_args=mutates)
        arguments, returns = schema.rsplit(" -> ", 1)
        _LIBRARY.define(f"{self.name}{arguments[:-1]}, str backend, str precision) -> {returns}", tags=_TAGS)
        qualified = f"{NAMESPACE}::{self.name}"
        _LIBRARY.impl(self.name, self.run, "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, self._fake, lib=_LIBRARY)
        if self._vjp is not None:
            torch.library.register_autograd(
                qualified, self._backward, setup_context=self._setup_context, lib=_LIBRARY
            )

    def run(self, *arguments: Any) -> Tensor | None:
        """Choose a backend and call it, as the operator does; the last arguments are its name and a tier."""
        *arguments, backend, precision = arguments
        precision = precision or "high"
        result = select(self, arguments, backend, precision).call(*arguments, precision)
        for index in self._mutates:
            # A native kernel writes behind autograd's back; saved tensors must notice all the same.
            if not arguments[index].is_inference():
                torch.autograd.graph.increment_version(arguments[index])
        if result is None or precision == "exact":
            return result
        return result.contiguous(memory_format=self._format(arguments))

    def _fake(self, *arguments: Any) -> Tensor | None:
        *arguments, _, precision = arguments
        result = self.reference(*arguments)
        if result is None or precision == "exact":
            return result
        return torch.empty_like(result, memory_format=self._format(arguments))

    def _format(self, arguments: Sequence[Any]) -> torch.memory_format:
        return memory_format_of(*(arguments[i] for i in self._layout))

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        named = dict(zip(self._names, inputs, strict=False))
        ctx.given = frozenset(n for n, v in named.items() if v is not None)
        ctx.others = {n: None if isinstance(v, Tensor) else v for n, v in named.items()}
        ctx.saved_names = tuple(n for n in named if n in self._saves and named[n] is not None)
        ctx.save_for_backward(*(named[n] for n in ctx.saved_names))

    def _backward(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        named = {**ctx.others, **dict(zip(ctx.saved_names, ctx.saved_tensors, strict=True))}
        needs = {n for n, need in zip(self._names, ctx.needs_input_grad, strict=False) if need}
        grads = self._vjp(grad, needs, ctx.given, **named)
        return (*(grads.get(n) if n in needs else None for n in self._names), None, None)


def _nobody_looks(arguments: Sequence[Any]) -> bool:
    """Whether no compiler, tracer, dispatch mode, tensor subclass or autograd needs to see the operator.

    A dry run looks on as what the backend does itself.
    """
    if dry_run.current() is not None:
        return True
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    ):
        return False
    grad = torch.is_grad_enabled()
    for argument in arguments:
        kind = type(argument)
        if kind in _PLAIN:
            if (grad and argument.requires_grad) or argument.is_meta:
                return False
            if argument.is_neg() or argument.is_conj():
                return False
        elif isinstance(argument, Tensor):
            return False
    return True


_PLAIN = (Tensor, torch.nn.Parameter)


def all_ops() -> list[Op]:
    """Return every registered op, by name."""
    return [_OPS[name] for name in sorted(_OPS)]


def explain(op: Callable[..., Any] | str, *arguments: Any, **keywords: Any) -> Explanation:
    """Say which backend a call would take and why not the others; runs nothing.

    Args:
        op: A public function of this package, or its name.
        *arguments: The arguments of that call; tensors made under torch's `FakeTensorMode`, which have no
            memory, are taken for real ones.
        **keywords: Its keyword arguments.

    Returns:
        An `Explanation`; printing it gives a line per backend.

    Raises:
        InvalidInput: The op is unknown, or the arguments are not valid for it.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in _OPS:
        raise InvalidInput(f"explain: got op {name!r}, expected one of {', '.join(sorted(_OPS))}")
    return _OPS[name].explain(*arguments, **keywords)
