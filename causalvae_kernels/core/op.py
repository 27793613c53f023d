"""`Op`: the reference gives schema, fake kernel, fallback and oracle; backends are added to it.

The arguments of an op are one frozen record, whose fields are those of its operators in `torch.library`: one
that returns a tensor, and its overload `out`, which writes into memory that is there. Choosing the backend
happens inside of them, so tracing sees one opaque call whose output strides depend on the inputs alone.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import dry_run, memory
from .backend import Backend, nothing_measured
from .bind import Bindings, Bound, is_watched
from .checks import check_shape
from .errors import InvalidInput
from .layout import memory_format_of
from .overlap import check_destination
from .precision import resolve_precision
from .selection import Explanation, explain_selection, is_chosen_freely, select
from .tuned import Measurement

NAMESPACE = "causalvae_kernels"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_OPS: dict[str, Op] = {}

# Output strides follow the input's strides, so a compiler must hand over the very strides it traced.
_TAGS = tuple(
    getattr(torch.Tag, tag) for tag in ("needs_exact_strides", "pt2_compliant_tag") if hasattr(torch.Tag, tag)
)


class Call(NamedTuple):
    """A call of an operator, taken apart.

    Attributes:
        op: The op.
        args: Its record of arguments.
        out: Where the result goes; None: it is made.
        backend: The one asked for, or None.
        precision: The tier.
    """

    op: Op
    args: Any
    out: Tensor | None
    backend: str | None
    precision: str

    def choose(self) -> Backend:
        """Return the backend that it takes."""
        return self.op.choose(self.args, self.backend, self.precision, self.out)

    def run(self) -> Tensor | None:
        """Run it as the operator does."""
        return self.op.run(self.args, self.out, self.backend, self.precision)


class Op:
    """The operators `torch.ops.causalvae_kernels.<name>` and their backends.

    Args:
        name: Name of the op; a trailing underscore means that it works in place, on `out`.
        args: The record of its arguments, a NamedTuple annotated for `torch.library.infer_schema`. Its method
            `work(out)` returns what a call needs. Unless the op works in place it has the properties
            `out_shape` and `out_dtype`.
        reference: Pure PyTorch, defines the op: `reference(args)` returns the result; in place,
            `reference(out, args)`.
        prepare: Takes the public function's arguments; returns the record, checked, and `out`.
        check: Takes the record as the public function was given it; returns it as backends take it, the
            tensors as they are. With it calls are bound.
        backends: All but the reference.
        order: What `auto` tries, in turn; holds no kernel of ours.
        measured: `measured(args, precision, out)` returns what was measured for calls like this one, or None.
            `auto` tries a backend that was measured to be faster before `order`.
        layout: Names of the arguments that decide the memory format of the output; in the tier `exact` it
            is the one in which the reference happens to return it.
        may_be_out: Names of the arguments that may be `out` itself, element for element.
        vjp: `vjp(grad, needs, given, **arguments)` returns a dict of gradients by argument name, composed
            of differentiable aten calls. `needs` holds the names whose gradient is wanted, `given` those
            that were not None. Arguments that are tensors and not in `saves` come as None.
        saves: The tensors that `vjp` needs.
    """

    def __init__(
        self,
        name: str,
        *,
        args: type,
        reference: Callable[..., Any],
        prepare: Callable[..., tuple[Any, Any]],
        check: Callable[[Any], Any] | None = None,
        backends: Sequence[Backend],
        order: Sequence[str] = ("aten", "reference"),
        measured: Callable[[Any, str, Tensor | None], Measurement | None] = nothing_measured,
        layout: Sequence[str] = (),
        may_be_out: Sequence[str] = (),
        vjp: Callable[..., dict[str, Tensor | None]] | None = None,
        saves: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.args = args
        self.in_place = name.endswith("_")
        self.reference = reference
        self.check = check
        self.prepare = prepare
        self.bindings = Bindings(self)
        self.order = tuple(order)
        self.measured = measured
        self.may_be_out = frozenset(may_be_out)
        if self.in_place:
            first = Backend("reference", write=lambda out, args, _: reference(out, args))
        else:
            first = Backend("reference", make=lambda args, _: reference(args), adds_in_place=True)
        self._backends = {b.name: b for b in (first, *backends)}
        self.names: tuple[str, ...] = args._fields
        hints = typing.get_type_hints(args)
        self.tensors = tuple(n for n in self.names if hints[n] in (Tensor, Tensor | None))
        self._layout = tuple(self.names.index(n) for n in layout)
        self._vjp, self._saves = vjp, frozenset(saves)
        self._register()
        operators = getattr(getattr(torch.ops, NAMESPACE), name)
        self._into = operators.default if self.in_place else operators.out
        self._fresh = None if self.in_place else operators.default
        _OPS[name] = self

    @property
    def backends(self) -> dict[str, Backend]:
        """The backends by name, the reference first."""
        return self._backends

    @backends.setter
    def backends(self, backends: dict[str, Backend]) -> None:
        self._backends = backends
        self.bindings.forget()

    def __call__(
        self,
        args: Any,
        out: Tensor | None = None,
        *,
        backend: str | None = None,
        precision: str | None = None,
    ) -> Tensor | None:
        """Run the op on prepared arguments; return the result, or None if it was written into `out`.

        If no compiler, tracer, autograd or dispatch mode is active, the backend is called directly: the
        dispatcher and the Python kernels that `torch.library` puts around an op cost 50 us a call, as much as
        a small convolution.
        """
        precision = resolve_precision(precision)
        if _nobody_looks(args if out is None else (out, *args)):
            return self.run(args, out, backend, precision)
        if out is None:
            return self._fresh(*args, backend or "", precision)
        return self._into(out, *args, backend or "", precision)

    def call(
        self,
        tensors: tuple[Tensor | None, ...],
        options: tuple[Any, ...],
        out: Any,
        backend: str | None,
        precision: str | None,
        cast: Callable[[Any, Tensor | None], Any] | None = None,
    ) -> Tensor | None:
        """Run the op on the public function's arguments: bound if nothing observes it, else as an operator.

        Args:
            tensors: The fields of the record that are tensors or None.
            options: The others.
            out: A tensor, a `FrameBuffer`, or None.
            backend: As given.
            precision: As given.
            cast: `cast(record, out)` returns what autocast makes of the record; None: nothing.
        """
        to = getattr(out, "body", out)
        bound = self.bindings.find(tensors, options, to, backend, precision)
        if bound is not None:
            return bound.run(tensors, to)
        args = self.args(*tensors, *options)
        args = self.check(args if cast is None else cast(args, to))
        return self(args, self.check_out(to, args), backend=backend, precision=precision)

    def choose(
        self, args: Any, backend: str | None, precision: str | None, out: Tensor | None = None
    ) -> Backend:
        """Return the backend that a call with prepared arguments takes.

        Raises:
            BackendUnavailable: The backend asked for cannot run it.
        """
        return select(self, args, out, backend, resolve_precision(precision))

    def bind(
        self, args: Any, out: Tensor | None, backend: str | None, precision: str | None
    ) -> tuple[Bound, bool]:
        """Return a checked call, bound, and whether the choice of its backend lasts.

        Raises:
            BackendUnavailable: The backend asked for cannot run it.
        """
        precision = resolve_precision(precision)
        chosen = select(self, args, out, backend, precision)
        found = self.measured(args, precision, out) if is_chosen_freely(self, backend) else None
        passing = found is not None and found.passing
        keeps = passing and chosen.name == found.backend
        bound = Bound(
            self,
            chosen,
            precision,
            tuple(a for n, a in zip(self.names, args, strict=True) if n not in self.tensors),
            chosen.two_sources(args, precision),
            chosen.adds_in_place,
            args.work(out),
        )
        if chosen.bind is not None:
            if not self.in_place:
                bound.shape, bound.dtype = args.out_shape, args.out_dtype
                bound.memory_format = self.memory_format(args)
                if math.prod(bound.shape) * bound.dtype.itemsize >= memory.LARGE:
                    bound.empty = memory.empty
            like = out
            if like is None:
                given = {"dtype": bound.dtype, "memory_format": bound.memory_format}
                like = torch.empty(bound.shape, device="meta", **given)
            bound.write = chosen.bind(args, like, keeps)
        if keeps:
            bound.otherwise = next(
                self.backends[n] for n in self.order if self.backends[n].why_not(args, precision, out) is None
            )
        return bound, not passing or (keeps and bound.write is not None)

    def explain(
        self, *arguments: Any, backend: str | None = None, precision: str | None = None, **keywords: Any
    ) -> Explanation:
        """Say which backend a call of the public function with these arguments takes; runs nothing."""
        with dry_run.explaining():
            args, out = self.prepare(*arguments, **keywords)
            return explain_selection(self, args, out, backend, resolve_precision(precision))

    def run(self, args: Any, out: Tensor | None, backend: str | None, precision: str | None) -> Tensor | None:
        """Choose a backend and run it, as the operators do."""
        precision = precision or "high"
        return self.run_on(select(self, args, out, backend, precision), args, out, precision)

    def run_on(self, backend: Backend, args: Any, out: Tensor | None, precision: str) -> Tensor | None:
        """Run a backend: the result goes into `out`, or into memory allocated here or by the backend."""
        if out is not None:
            if backend.write is not None:
                backend.write(out, args, precision)
            else:
                out.copy_(backend.make(args, precision))
            # A native kernel writes behind autograd's back; saved tensors must notice all the same.
            if not out.is_inference():
                torch.autograd.graph.increment_version(out)
            return None
        if backend.make is None:
            result = self.empty(args)
            backend.write(result, args, precision)
            return result
        result = backend.make(args, precision)
        return result if precision == "exact" else result.contiguous(memory_format=self.memory_format(args))

    def empty(self, args: Any) -> Tensor:
        """Return memory for the result of a call."""
        return memory.empty(
            args.out_shape,
            dtype=args.out_dtype,
            device=args[self._layout[0]].device,
            memory_format=self.memory_format(args),
        )

    def memory_format(self, args: Any) -> torch.memory_format:
        """Return that of the result, but in the tier `exact`."""
        return memory_format_of(*(args[i] for i in self._layout))

    def check_out(self, out: Any, args: Any) -> Tensor | None:
        """Return the tensor that the result of a checked call goes into: `out`, the body of it, or None.

        Raises:
            InvalidInput: It has another shape, dtype or device than the result, overlaps itself or what is
                read, or a gradient would be lost.
        """
        if out is None:
            return None
        out = getattr(out, "body", out)  # of a FrameBuffer
        check_shape(self.name, "out", out, args.out_shape, "the shape of the result")
        tensors = {name: t for name, t in zip(self.names, args, strict=True) if isinstance(t, Tensor)}
        device = args[self._layout[0]].device
        if (out.dtype, out.device) != (args.out_dtype, device):
            raise InvalidInput(
                f"{self.name}: out is {out.dtype} on {out.device}, expected {args.out_dtype} on {device}, as "
                "the result is"
            )
        if torch.is_grad_enabled() and any(t.requires_grad for t in (out, *tensors.values())):
            raise InvalidInput(
                f"{self.name}: got out and a tensor that requires a gradient, expected none, because writing "
                "in place would lose it; leave out away"
            )
        check_destination(self.name, "out", out, tensors, may_be_out=self.may_be_out)
        return out

    def _register(self) -> None:
        hints = typing.get_type_hints(self.args)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(n, kind, annotation=hints[n]) for n in self.names]

        def prototype(*_: Any) -> None: ...

        prototype.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            parameters, return_annotation=None if self.in_place else Tensor
        )
        arguments = torch.library.infer_schema(prototype, mutates_args=()).rsplit(" -> ", 1)[0][1:-1]
        last = "str backend, str precision"
        into = self.name if self.in_place else f"{self.name}.out"
        _LIBRARY.define(f"{into}(Tensor(a!) out, {arguments}, {last}) -> ()", tags=_TAGS)
        _LIBRARY.impl(into, self._operator_into, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{into}", lambda *_: None, lib=_LIBRARY)
        if self.in_place:
            return
        qualified = f"{NAMESPACE}::{self.name}"
        _LIBRARY.define(f"{self.name}({arguments}, {last}) -> Tensor", tags=_TAGS)
        _LIBRARY.impl(self.name, self._operator, "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, self._fake, lib=_LIBRARY)
        if self._vjp is not None:
            torch.library.register_autograd(
                qualified, self._backward, setup_context=self._setup_context, lib=_LIBRARY
            )

    def _operator(self, *arguments: Any) -> Tensor | None:
        *values, backend, precision = arguments
        return self.run(self.args(*values), None, backend, precision)

    def _operator_into(self, out: Tensor, *arguments: Any) -> None:
        *values, backend, precision = arguments
        self.run(self.args(*values), out, backend, precision)

    def _fake(self, *arguments: Any) -> Tensor:
        *values, _, precision = arguments
        args = self.args(*values)
        result = self.reference(args)
        if precision == "exact":
            return result
        return torch.empty_like(result, memory_format=self.memory_format(args))

    def _setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        named = dict(zip(self.names, inputs, strict=False))
        ctx.given = frozenset(n for n, v in named.items() if v is not None)
        ctx.others = {n: None if isinstance(v, Tensor) else v for n, v in named.items()}
        ctx.saved_names = tuple(n for n in named if n in self._saves and named[n] is not None)
        ctx.save_for_backward(*(named[n] for n in ctx.saved_names))

    def _backward(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        named = {**ctx.others, **dict(zip(ctx.saved_names, ctx.saved_tensors, strict=True))}
        needs = {n for n, need in zip(self.names, ctx.needs_input_grad, strict=False) if need}
        grads = self._vjp(grad, needs, ctx.given, **named)
        return (*(grads.get(n) if n in needs else None for n in self.names), None, None)


def call_of(func: Any, arguments: Sequence[Any]) -> Call:
    """Return a call of one of our operators as a dispatch mode sees it, taken apart."""
    op = _OPS[func._schema.name.partition("::")[2]]
    *values, backend, precision = arguments
    out = values.pop(0) if op.in_place or func._overloadname == "out" else None
    return Call(op, op.args(*values), out, backend or None, precision)


def _nobody_looks(arguments: Sequence[Any]) -> bool:
    """Whether no compiler, tracer, dispatch mode, tensor subclass or autograd needs to see the operator.

    A dry run observes what the backend does itself, not the operator.
    """
    if dry_run.current() is not None:
        return True
    if is_watched():
        return False
    grad = torch.is_grad_enabled()
    for argument in arguments:
        kind = type(argument)
        if kind in dry_run.PLAIN:
            if (grad and argument.requires_grad) or argument.is_meta:
                return False
            if argument.is_neg() or argument.is_conj():
                return False
        elif isinstance(argument, Tensor):
            return False
    return True


def op_named(name: str) -> Op:
    """Return the op of this name.

    Raises:
        KeyError: There is none.
    """
    return _OPS[name]


def all_ops() -> list[Op]:
    """Return every registered op, by name."""
    return [_OPS[name] for name in sorted(_OPS)]


def explain(op: Callable[..., Any] | str, *arguments: Any, **keywords: Any) -> Explanation:
    """Explain which backend a call would use, and why not the others; nothing is run.

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
