"""A coder that was built for one shape: its steps run one after another in one block of memory."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import dry_run, memory
from ..core.dry_run import is_plain_tensor
from ..core.traffic import Work
from ..ops import causal_pad3d_
from ..temporal.frame_buffer import FrameBuffer
from ..temporal.state import final_state
from .arena import Arena, is_shown
from .steps import (
    CallStep,
    CopyStep,
    KeepStep,
    Operand,
    OpStep,
    State,
    Steps,
    Value,
    View,
    Weight,
    frames_of,
    part_of,
)


class Mismatch(Exception):
    """A module that was called made something else than was read from it: the schedule does not hold."""


@dataclass(frozen=True)
class Place:
    """Where a value lies in the arena.

    Attributes:
        offset: Bytes.
        shape: Of the storage, which may have room in front and behind.
        strides: Of the storage.
        start: The frame of the storage at which the value begins.
    """

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Planned:
    """A step, and what was decided for it.

    Attributes:
        step: The step.
        drops: The values outside of the arena that nobody reads afterwards.
        backend: What runs it, if it is an op.
        work: What it must compute and move, if it is an op.
    """

    step: OpStep | CallStep | KeepStep | CopyStep
    drops: tuple[int, ...]
    backend: str | None = None
    work: Work | None = None


Values = list[Tensor | None]
States = list[Any]
Run = Callable[[Values, States, States | None], None]


_first_runs = itertools.count()


class Schedule:
    """Steps with their memory.

    Attributes:
        planned: The steps.
        places: Of the values that lie in the arena, by number.
        size: Of the arena in bytes.
        slots: What each state belongs to.
        states: Shape, dtype and device of each state that is read; None where there is none, or a module that
            is called knows what it is.
        lasts: Whether the same backends would be chosen again; not while packed weights lack room.
        calls_others: Whether a module is called that somebody has hooked or exchanged.
        runs: How often it was run.
        since: When it was first run, counted in such events of all schedules.
    """

    def __init__(
        self,
        read: Steps,
        planned: Sequence[Planned],
        places: dict[int, Place],
        size: int,
        device: torch.device,
        choice: tuple[str | None, str],
        lasts: bool,
    ) -> None:
        self.planned, self.places, self.size, self.lasts = tuple(planned), places, size, lasts
        self.slots, self.runs, self.since = tuple(read.slots), 0, -1
        self.states: list[tuple[tuple[int, ...], torch.dtype, torch.device] | None] = [None] * len(self.slots)
        for step in read.steps:
            if isinstance(step, OpStep) and step.state is not None and step.state.given:
                self.states[step.state.slot] = (step.state.shape, step.state.dtype, device)
        self.calls_others = any(isinstance(s, CallStep) and s.keeps for s in read.steps)
        # The last one to read a state lets go of it.
        self._readers: dict[int, int] = {}
        for number, step in enumerate(p.step for p in planned):
            if isinstance(step, OpStep):
                for state in (*step.operands, step.past):
                    if isinstance(state, State) and state.given:
                        self._readers[state.slot] = number
        self._given, self._count = tuple(read.given), read.count
        self._result, self._result_format = read.result
        self._memory_format, self._device, self._choice = read.memory_format, device, choice
        self._ready: dict[int, tuple[Arena, list[Run]]] = {}
        # Whether states are kept, to the bytes that a run takes beside the arena, and what it leaves.
        self._dry: dict[bool, tuple[int, list[Any] | None]] = {}

    def run(
        self, arena: Arena, given: Sequence[Tensor], old: States, *, keeps: bool = True
    ) -> tuple[Tensor, States | None]:
        """Run all steps.

        Args:
            arena: Nobody else's meanwhile.
            given: The inputs.
            old: The states of the chunk before, by slot; emptied on the way, so that what nobody else holds
                goes when it was read.
            keeps: Whether another chunk follows.

        Returns:
            The result, in memory of its own, and the new states, or None.

        Raises:
            Mismatch: A module made something that was not expected.
        """
        if not self.runs:
            self.since = next(_first_runs)
        self.runs += 1
        arena.reserve(self.size)
        dry = dry_run.current()
        if dry is None:
            return self._run(arena, given, old, keeps)
        return self._run_dry(dry, arena, given, old, keeps)

    def _run(
        self, arena: Arena, given: Sequence[Tensor], old: States, keeps: bool
    ) -> tuple[Tensor, States | None]:
        values: Values = [None] * self._count
        for value, tensor in zip(self._given, given, strict=True):
            if tensor.dim() == 5:
                tensor = tensor.contiguous(memory_format=self._memory_format)
            values[value.index] = tensor
        new: States | None = [None] * len(self.slots) if keeps else None
        for run in self._runs(arena):
            run(values, old, new)
        return values[self._result.index], new

    def _run_dry(
        self, dry: dry_run.DryRun, arena: Arena, given: Sequence[Tensor], old: States, keeps: bool
    ) -> tuple[Tensor, States | None]:
        """Run without data; once that was done, what a run takes and leaves is known."""
        if keeps in self._dry:
            extra, left = self._dry[keeps]
            dry.peak = max(dry.peak, dry.live + extra)
            old[:] = [None] * len(old)
            options = {"dtype": self._result.dtype, "device": self._device}
            result = torch.empty(self._result.shape, memory_format=self._result_format, **options)
            return result, None if left is None else [s and s() for s in left]
        before, peak = dry.live, dry.peak
        dry.peak = before
        result, new = self._run(arena, given, old, keeps)
        extra, dry.peak = dry.peak - before, max(peak, dry.peak)
        if new is None or all(s is None or isinstance(s, Tensor) for s in new):
            self._dry[keeps] = extra, None if new is None else [s if s is None else _maker(s) for s in new]
        return result, new

    @property
    def given(self) -> tuple[int, ...]:
        """Shape of the first input."""
        return self._given[0].shape

    def _runs(self, arena: Arena) -> list[Run]:
        """Return the steps with their addresses in an arena; where a mode looks on, it sees operators."""
        if is_shown():
            with dry_run.aside():
                return self._bind(arena, seen=True)
        found = self._ready.get(id(arena))
        if found is None or found[0] is not arena:
            found = self._ready[id(arena)] = arena, self._bind(arena, seen=False)
        return found[1]

    def _bind(self, arena: Arena, *, seen: bool) -> list[Run]:
        made = {p.step.result.index: p.step.result for p in self.planned if not isinstance(p.step, KeepStep)}
        storages = {
            index: arena.view(place.offset, place.shape, place.strides, made[index].dtype)
            for index, place in self.places.items()
        }
        views = {
            index: storage.narrow(2, self.places[index].start, made[index].shape[2])
            for index, storage in storages.items()
        }
        there = _Memory(self.places, storages, views, self._memory_format, self._device)
        runs: list[Run] = []
        for number, planned in enumerate(self.planned):
            step = planned.step
            ends = not isinstance(step, KeepStep) and step.result.index == self._result.index
            memory_format = self._result_format if ends else self._memory_format
            if isinstance(step, CallStep):
                runs.append(functools.partial(_call, step, views, memory_format, planned.drops))
            elif isinstance(step, KeepStep):
                runs.append(functools.partial(_keep, step, views, planned.drops))
            elif isinstance(step, CopyStep):
                out = part_of(views[step.result.index], step.part)
                runs.append(functools.partial(_copy, out, views[step.source.index]))
            else:
                goes = number in self._readers.values()
                runs.append(_OpRun(planned, there, memory_format, self._choice, goes, seen))
        return runs


@dataclass(frozen=True)
class _Memory:
    """What values lie in.

    Attributes:
        places: By value.
        storages: The memory around each, room included.
        views: The values themselves.
        memory_format: Of all of them.
        device: Of all of them.
    """

    places: dict[int, Place]
    storages: dict[int, Tensor]
    views: dict[int, Tensor]
    memory_format: torch.memory_format
    device: torch.device


class _OpRun:
    """A call of an op whose activations have addresses."""

    def __init__(
        self,
        planned: Planned,
        there: _Memory,
        memory_format: torch.memory_format,
        choice: tuple[str | None, str],
        goes: bool,
        seen: bool,
    ) -> None:
        step = planned.step
        self._goes, self._drops, self._seen, self._choice = goes, planned.drops, seen, choice
        self._tensors: list[Tensor | None] = [None] * len(step.operands)
        self._made: list[tuple[int, int]] = []
        self._weights: list[tuple[int, dict[str, Any], str]] = []
        self._parts: list[tuple[int, Weight]] = []
        self._past: int | None = None  # the slot of the state that is read, and which operand that is
        self._at = -1
        like: list[Tensor | None] = []
        for at, operand in enumerate(step.operands):
            like.append(self._take(at, operand, there))
        self._state, self._body = step.state, None
        x = step.operands[0]
        if isinstance(x, View):
            self._body = there.views[x.value.index]
        self._fill, self._buffer = None, None
        if step.temporal_mode is not None:
            self._buffer = FrameBuffer(self._tensors[0], -x.start, tail_room=step.tail)
            self._fill = {"temporal_mode": step.temporal_mode, "backend": choice[0]}
            if step.past is not None and step.past.given:
                self._past = step.past.slot
        self._format = memory_format
        self._past_format = there.memory_format
        self._result, self._out, self._empty = step.result.index, there.views.get(step.result.index), None
        if self._out is not None and step.part is not None:
            self._out = part_of(self._out, step.part)
        self._sample = step.sample if self._made and self._made[0][0] == 0 else None
        if step.sample is not None:
            self._out, like[0] = frames_of(self._out, step.sample), frames_of(like[0], step.sample)
            if self._sample is None:
                self._tensors[0] = like[0]
        out, options = self._out, {"dtype": step.result.dtype, "device": there.device}
        if out is None:
            out = torch.empty(step.result.shape, memory_format=self._format, **options)
        op = step.op
        self._bound, _ = op.bind(op.check(op.args(*like, *step.options)), out, *choice)
        self._write = None if seen else self._bound.write
        if self._out is None and self._bound.backend.write is not None:
            self._empty = functools.partial(
                memory.empty, step.result.shape, memory_format=self._format, **options
            )

    def _take(self, at: int, operand: Operand, there: _Memory) -> Tensor | None:
        """Note where an operand comes from; return something like it."""
        if isinstance(operand, Weight):
            if operand.view is not None:
                self._parts.append((at, operand))
            else:
                self._weights.append((at, operand.parameters, operand.name))
            return operand.get()
        if isinstance(operand, State):
            if not operand.given:
                return None
            self._at, self._past = at, operand.slot
            return _blank(operand.shape, operand.dtype, there)
        if isinstance(operand, View):
            index = operand.value.index
            self._tensors[at] = operand.of(there.storages[index], there.places[index].start)
        elif isinstance(operand, Value):
            self._tensors[at] = there.views.get(operand.index)
            if self._tensors[at] is None:
                self._made.append((at, operand.index))
                return _blank(operand.shape, operand.dtype, there)
        return self._tensors[at]

    def __call__(self, values: Values, old: States, new: States | None) -> None:
        tensors, past = self._tensors.copy(), None
        for at, index in self._made:
            tensors[at] = values[index]
        if self._sample is not None:
            tensors[0] = frames_of(tensors[0], self._sample)
        for at, parameters, name in self._weights:
            tensors[at] = parameters[name]
        for at, weight in self._parts:
            tensors[at] = weight.get()
        if self._past is not None:
            past = old[self._past]
            if self._goes:
                old[self._past] = None
        if self._fill is not None:
            causal_pad3d_(self._buffer, initial_state=past, **self._fill)
        elif past is not None:
            past = tensors[self._at] = past.contiguous(memory_format=self._past_format)
        out = self._out
        if self._empty is not None:
            out = values[self._result] = self._empty()
        if self._write is None or not self._write(out, tensors):
            made = self._otherwise(tensors, out)
            if out is None:
                values[self._result] = made.contiguous(memory_format=self._format)
        state = self._state
        if state is not None and new is not None:
            x = tensors[0] if self._body is None else self._body
            new[state.slot] = final_state(
                x, state.shape[2], initial_state=past, temporal_mode=state.temporal_mode
            )
        for index in self._drops:
            values[index] = None

    def _otherwise(self, tensors: list[Tensor | None], out: Tensor | None) -> Tensor | None:
        """Run a backend that takes the record; another one where packed weights have no room now."""
        bound = self._bound
        args = bound.op.args(*tensors, *bound.options)
        if self._seen:
            return bound.op(args, out, backend=self._choice[0], precision=self._choice[1])
        backend = bound.backend if self._write is None else bound.otherwise
        return bound.op.run_on(backend, args, out, bound.precision)


def _blank(shape: tuple[int, ...], dtype: torch.dtype, there: _Memory) -> Tensor:
    memory_format = there.memory_format if len(shape) == 5 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=there.device, memory_format=memory_format)


def _maker(like: Tensor) -> Callable[[], Tensor]:
    """Return what makes tensors like one, which it does not keep."""
    options = {"dtype": like.dtype, "device": like.device}
    return functools.partial(torch.empty_strided, tuple(like.shape), like.stride(), **options)


def _copy(out: Tensor, source: Tensor, values: Values, old: States, new: States | None) -> None:
    out.copy_(source)


def _keep(
    step: KeepStep,
    views: dict[int, Tensor],
    drops: tuple[int, ...],
    values: Values,
    old: States,
    new: States | None,
) -> None:
    """Leave something for the next chunk."""
    if new is not None:
        found = (views.get(value.index) for value in step.reads)
        given = [values[v.index] if x is None else x for v, x in zip(step.reads, found, strict=True)]
        new[step.slot] = step.make(*given)
    for index in drops:
        values[index] = None


def _call(
    step: CallStep,
    views: dict[int, Tensor],
    memory_format: torch.memory_format,
    drops: tuple[int, ...],
    values: Values,
    old: States,
    new: States | None,
) -> None:
    """Call a module: what it is given and may keep is a copy, what it makes must be what was expected."""
    given = []
    for value in step.reads:
        tensor = views.get(value.index)
        if tensor is None:
            tensor = values[value.index]
        given.append(tensor.clone() if step.keeps else tensor)
    past = []
    for slot in step.slots:
        past.append(old[slot])
        old[slot] = None
    expected = step.result
    if step.into:
        out = views.get(expected.index)
        if out is None:
            options = {"dtype": expected.dtype, "device": given[0].device, "memory_format": memory_format}
            out = values[expected.index] = memory.empty(expected.shape, **options)
        given.insert(0, out)
    if step.over and expected.index not in views:
        given[0] = given[0].clone()  # somebody may hold what a module has made
    made, left = step.call(*given, past)
    if step.over or step.into:
        made = given[0]
    if not is_plain_tensor(made):
        raise Mismatch(f"{step.path} made a {type(made).__name__}")
    if made.requires_grad and torch.is_grad_enabled():
        raise Mismatch(f"{step.path} made a tensor that requires a gradient")
    made = made.resolve_neg()
    if not step.loose:
        if tuple(made.shape) != expected.shape or made.dtype != expected.dtype:
            found, wanted = (tuple(made.shape), made.dtype), (expected.shape, expected.dtype)
            raise Mismatch(f"{step.path} made {found}, not {wanted}")
        if expected.index not in views:
            made = made.contiguous(memory_format=memory_format)
    if expected.index not in views:
        values[expected.index] = made
    if new is not None:
        for slot, state in zip(step.slots, left, strict=True):
            new[slot] = state
    for index in drops:
        values[index] = None
