"""What a coder computes, step by step, for clips of one shape.

A family's reader goes through its modules as their `forward` would, and calls the methods of `Steps` where
those would compute. What it gets back are values: shapes and dtypes of activations that are still to be made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.op import Op


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
        frames: Whether it is the kernel of images, which as one of videos has one frame.
    """

    parameters: dict[str, Tensor | None]
    name: str
    frames: bool = False

    def get(self) -> Tensor | None:
        """Return the parameter as it is now, or None if the module has none."""
        tensor = self.parameters[self.name]
        return tensor.unsqueeze(2) if self.frames and tensor is not None else tensor


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
        frames: How many.
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
        part: The frames of `result` that it makes, the first one and their number; None: all.
        past: The state that is put into the room in front of its frames before it runs, or None.
        temporal_mode: What is put there of a first chunk; None: nothing is.
    """

    path: str
    op: Op
    operands: tuple[Operand, ...]
    options: tuple[Any, ...]
    result: Value
    state: State | None = None
    part: tuple[int, int] | None = None
    past: State | None = None
    temporal_mode: str | None = None

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
        call: `call(*values, state)` returns the result and the new state.
        reads: What it is given.
        result: What it makes; another shape or dtype ends the run with `Mismatch`.
        state: The slot of what it takes and leaves, whatever that is, or None.
        keeps: Whether somebody may keep what it is given: then it gets a copy.
    """

    path: str
    call: Callable[..., tuple[Tensor, Any]]
    reads: tuple[Value, ...]
    result: Value
    state: int | None = None
    keeps: bool = True


@dataclass(frozen=True)
class CopyStep:
    """A copy of a value into some frames of another.

    Attributes:
        path: Of the module that it stands for.
        source: What is copied.
        result: Where it goes.
        part: Into which frames: the first one and their number.
    """

    path: str
    source: Value
    result: Value
    part: tuple[int, int]

    @property
    def reads(self) -> tuple[Value, ...]:
        """What is copied."""
        return (self.source,)


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
    steps: list[OpStep | CallStep] = field(default_factory=list)
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
    ) -> Value:
        """Record a call of an op; return what it makes."""
        like = op.args(*map(_like, operands), *options)
        result = self.new(tuple(like.out_shape), like.out_dtype)
        self.steps.append(OpStep(path, op, operands, options, result, state))
        return result

    def call(
        self,
        path: str,
        call: Callable[..., tuple[Tensor, Any]],
        *reads: Value,
        shape: tuple[int, ...] | None = None,
        key: Any = None,
        keeps: bool = True,
    ) -> Value:
        """Record a call of a module; what it makes is like the first thing read, but for the shape."""
        result = self.new(reads[0].shape if shape is None else shape, reads[0].dtype)
        slot = None if key is None else self.slot(key)
        self.steps.append(CallStep(path, call, reads, result, slot, keeps))
        return result

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


def weights(module: nn.Module, *names: str, frames: bool = False) -> tuple[Weight | None, ...]:
    """Return parameters of a module; None for those that it does not have."""
    found = module._parameters
    return tuple(
        Weight(found, name, frames and name == "weight") if found.get(name) is not None else None
        for name in names
    )


def _like(operand: Operand) -> Tensor | None:
    """Return a tensor of an operand's shape and dtype; a state's do not decide what is made."""
    if operand is None or isinstance(operand, State):
        return None
    if isinstance(operand, Weight):
        return operand.get()
    return torch.empty(operand.shape, dtype=operand.dtype, device="meta")
