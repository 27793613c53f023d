"""What a coder computes, step by step, for clips of one shape.

A family's reader goes through its modules as their `forward` would, and calls the methods of `Steps` where
those would compute. What it gets back are values: shapes and dtypes of activations that are still to be made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.op import Op
from ..temporal.state import final_state


class Unreadable(Exception):
    """A coder holds something whose result nobody can foresee: its modules run one by one."""


class Value(NamedTuple):
    """An activation.

    Attributes:
        index: Its number among the values of a coder.
        shape: (B, C, T, H, W).
        dtype: Of its elements.
    """

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Weight(NamedTuple):
    """A parameter of a module, which is looked up in every run: it may be assigned anew.

    Attributes:
        parameters: Of the module, by name.
        name: Of this one.
        view: Returns it as an op takes it; None: it is taken as it is.
    """

    parameters: dict[str, Tensor | None]
    name: str
    view: Callable[[Tensor], Tensor] | None = None

    def get(self) -> Tensor:
        """Return the parameter as it is now."""
        tensor = self.parameters[self.name]
        return tensor if self.view is None else self.view(tensor)


class State(NamedTuple):
    """What a step knows of the chunks before.

    Attributes:
        slot: Its number among the states of a coder.
        given: Whether there is one: not before the first chunk.
        shape: (B, C, P, H, W).
        dtype: Of its elements.
        temporal_mode: What stood before the first chunk.
    """

    slot: int
    given: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    temporal_mode: str


class View(NamedTuple):
    """Some frames of a value.

    Attributes:
        value: The value.
        start: The first of them; negative: so many frames of room in front of the value.
        frames: How many; beyond those that the value has is room behind it.
        repeats: How often a single one counts.
    """

    value: Value
    start: int
    frames: int
    repeats: int = 1

    def of(self, whole: Tensor, front: int) -> Tensor:
        """Return the frames in memory that begins so many frames before the value."""
        part = whole.narrow(2, front + self.start, self.frames)
        if self.repeats == 1:
            return part
        batch, channels, _, height, width = part.shape
        return part.expand(batch, channels, self.repeats, height, width)


Operand = Value | View | Weight | State | None


@dataclass(frozen=True)
class OpStep:
    """A call of an op.

    Attributes:
        path: Of the module that it stands for.
        op: The op.
        operands: The fields of its record that are tensors.
        options: The others, as the public function takes them.
        result: What it makes.
        state: What it leaves of its frames for the next chunk, or None.
        part: The frames of `result` that it makes: the first one, their number, and every how manyth it is;
            None: all.
        past: The state that is put into the room in front of its frames before it runs, or None.
        temporal_mode: What is put there of a first chunk; None: nothing is.
        tail: How many frames of room behind its frames are filled with the last one before it runs.
        sample: The clip of a batch whose frames it takes as if they were a batch; None: it takes all clips.
    """

    path: str
    op: Op
    operands: tuple[Operand, ...]
    options: tuple[Any, ...]
    result: Value
    state: State | None = None
    part: tuple[int, int, int] | None = None
    past: State | None = None
    temporal_mode: str | None = None
    tail: int = 0
    sample: int | None = None

    @property
    def reads(self) -> tuple[Value, ...]:
        """The values among the operands."""
        found = (o.value if isinstance(o, View) else o for o in self.operands)
        return tuple(operand for operand in found if isinstance(operand, Value))


@dataclass(frozen=True)
class CallStep:
    """A call of a module that must be called, because it is hooked, or unknown, or is left to the framework.

    Attributes:
        path: Of the module.
        call: `call(*values, past)` returns the result and a list of what it leaves for the next chunk, `past`
            being what it left of the one before.
        reads: What it is given.
        result: What it makes; another shape or dtype ends the run with `Mismatch`.
        slots: Of what it takes and leaves.
        keeps: Whether somebody may keep what it is given: then it gets a copy.
        over: Whether it changes the first thing that it reads, which nobody reads then, and returns None.
        loose: Whether the result may have any shape: only other calls read it.
        into: Whether it is given memory for the result first, and returns None.
    """

    path: str
    call: Callable[..., tuple[Tensor | None, list[Any]]]
    reads: tuple[Value, ...]
    result: Value
    slots: tuple[int, ...] = ()
    keeps: bool = True
    over: bool = False
    loose: bool = False
    into: bool = False


@dataclass(frozen=True)
class KeepStep:
    """What is left for the next chunk.

    Attributes:
        path: Of the module that it stands for.
        reads: What it is made of.
        slot: Its number among the states.
        make: `make(*values)` returns it, in memory of its own.
    """

    path: str
    reads: tuple[Value, ...]
    slot: int
    make: Callable[..., Tensor]


@dataclass(frozen=True)
class CopyStep:
    """A copy of a value into some frames of another.

    Attributes:
        path: Of the module that it stands for.
        source: What is copied.
        result: Where it goes.
        part: Into which frames, as in `OpStep`.
    """

    path: str
    source: Value
    result: Value
    part: tuple[int, int, int]

    @property
    def reads(self) -> tuple[Value, ...]:
        """What is copied."""
        return (self.source,)


def part_of(tensor: Tensor, part: tuple[int, int, int] | None) -> Tensor:
    """Return the frames of a tensor that `OpStep.part` names."""
    if part is None:
        return tensor
    first, count, stride = part
    return tensor[:, :, first : first + (count - 1) * stride + 1 : stride]


def frames_of(tensor: Tensor, sample: int | None) -> Tensor:
    """Return the frames of one clip as a batch, (T, C, 1, H, W); None: the tensor as it is."""
    return tensor if sample is None else tensor[sample].transpose(0, 1).unsqueeze(2)


@dataclass
class Steps:
    """A coder for clips of one shape, as it is read.

    Attributes:
        memory_format: Of all activations.
        first: Whether it is the first chunk: there are no states.
        steps: In the order in which they run.
        given: The inputs.
        result: What is returned, and in which memory format.
        slots: What each state belongs to: the family's own key.
    """

    memory_format: torch.memory_format
    first: bool
    steps: list[OpStep | CallStep | KeepStep] = field(default_factory=list)
    given: list[Value] = field(default_factory=list)
    result: tuple[Value, torch.memory_format] | None = None
    slots: list[Any] = field(default_factory=list)
    count: int = 0

    def take(self, x: Tensor) -> Value:
        """Record an input."""
        value = self.new(tuple(x.shape), x.dtype)
        self.given.append(value)
        return value

    def op(
        self,
        path: str,
        op: Op,
        operands: tuple[Operand, ...],
        options: tuple[Any, ...],
        state: State | None = None,
        **more: Any,
    ) -> Value:
        """Record a call of an op; return what it makes. `more` are the other attributes of the step."""
        if "result" not in more:
            like = op.args(*map(_like, operands), *options)
            more["result"] = self.new(tuple(like.out_shape), like.out_dtype)
        self.steps.append(OpStep(path, op, operands, options, state=state, **more))
        return more["result"]

    def call(
        self,
        path: str,
        call: Callable[..., tuple[Tensor | None, list[Any]]],
        *reads: Value,
        shape: tuple[int, ...] | None = None,
        keys: Sequence[Any] = (),
        **more: Any,
    ) -> Value:
        """Record a call of a module; what it makes is like the first thing read, but for the shape."""
        result = self.new(reads[0].shape if shape is None else shape, reads[0].dtype)
        slots = tuple(self.slot(key) for key in keys)
        self.steps.append(CallStep(path, call, reads, result, slots, **more))
        return result

    def keep(self, path: str, source: Value, state: State, *, zeros: bool = False) -> None:
        """Record what is left for the next chunk: the last frames, or as many zeros."""
        make = functools.partial(_zeros if zeros else final_state, frames=state.shape[2])
        self.leave(path, (source,), state.slot, make)

    def leave(self, path: str, reads: Sequence[Value], slot: int, make: Callable[..., Tensor]) -> None:
        """Record what is made of values for the next chunk."""
        self.steps.append(KeepStep(path, tuple(reads), slot, make))

    def slot(self, key: Any) -> int:
        """Return the number of a new state."""
        self.slots.append(key)
        return len(self.slots) - 1

    def state(self, key: Any, x: Value, frames: int, temporal_mode: str) -> State:
        """Return a new state: so many frames before those of `x`."""
        batch, channels, _, *size = x.shape
        return State(self.slot(key), not self.first, (batch, channels, frames, *size), x.dtype, temporal_mode)

    def returns(self, value: Value, memory_format: torch.memory_format) -> Steps:
        """Record what is returned."""
        self.result = (value, memory_format)
        return self

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Value:
        """Return a new value."""
        self.count += 1
        return Value(self.count - 1, shape, dtype)


def weights(
    module: nn.Module, *names: str, views: dict[str, Callable[[Tensor], Tensor]] | None = None
) -> tuple[Weight | None, ...]:
    """Return parameters of a module, some as views; None for those that it does not have.

    Raises:
        Unreadable: One is there and is no parameter, or has its negative bit set.
    """
    found, views, made = module._parameters, views or {}, []
    for name in names:
        tensor = found.get(name)
        if tensor is None and isinstance(getattr(module, name, None), Tensor):
            raise Unreadable(f"the {name} of a {type(module).__name__} is no parameter")
        if tensor is not None and tensor.is_neg():
            raise Unreadable(f"the {name} of a {type(module).__name__} has its negative bit set")
        made.append(None if tensor is None else Weight(found, name, views.get(name)))
    return tuple(made)


def _zeros(x: Tensor, frames: int) -> Tensor:
    return torch.zeros_like(x[:, :, :1].expand(-1, -1, frames, -1, -1))


def outputs_of(part: int, parts: int) -> Callable[[Tensor], Tensor]:
    """Return a view of weights: those of one of so many equal parts of the output channels."""

    def take(weight: Tensor) -> Tensor:
        count = weight.shape[0] // parts
        return weight.narrow(0, part * count, count)

    return take


def of_one_frame(weight: Tensor) -> Tensor:
    """Return the kernel of a convolution of images as one of videos."""
    return weight.unsqueeze(2)


def _like(operand: Operand) -> Tensor | None:
    """Return a tensor of an operand's shape and dtype; a state's do not decide what is made."""
    if operand is None or isinstance(operand, State):
        return None
    if isinstance(operand, Weight):
        return operand.get()
    value = operand.value if isinstance(operand, View) else operand
    shape = value.shape
    if isinstance(operand, View):
        shape = (*shape[:2], operand.frames * operand.repeats, *shape[3:])
    return torch.empty(shape, dtype=value.dtype, device="meta")
