"""From steps to a schedule: a backend for each op, who overwrites whom, and where everything lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.bind import Bound
from .arena import Span, place
from .overlay import Overlay, overlaid
from .schedule import Place, Planned, Schedule
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

Step = OpStep | CallStep | KeepStep | CopyStep
_CONV = "causal_conv3d"
# Of a record of `causal_conv3d`: x, and the options behind the tensors.
_TEMPORAL_MODE = 2


def build(
    steps: Steps, device: torch.device, *, backend: str | None, precision: str, low: bool = False
) -> Schedule:
    """Decide everything that does not depend on addresses.

    Args:
        steps: As they were read; their result is set.
        device: Where the activations are.
        backend: The one asked for, or None.
        precision: The tier.
        low: Whether memory counts more than time: convolutions write over what they read (`overlay`).

    Raises:
        InvalidInput: The check of an op refuses its call.
        BackendUnavailable: No backend runs it.
    """
    return _Builder(steps, device, backend, precision, low).build()


@dataclass
class _Buffer:
    """Memory that values share, one after another.

    Attributes:
        value: One of those that fill it.
        first: The step that writes it first.
        last: The step that reads it last.
        front: Frames of room in front of each sample.
        behind: Frames of room behind.
        lags: By value: how many frames it lies behind the front.
        inside: By value of fewer channels: how many bytes behind the begin of frame 0 it begins.
    """

    value: Value
    first: int
    last: int
    front: int = 0
    behind: int = 0
    lags: dict[int, int] = field(default_factory=dict)
    inside: dict[int, int] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        batch, channels, frames, *size = self.value.shape
        return (batch, channels, self.front + frames + self.behind, *size)

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.value.dtype.itemsize

    @property
    def frame(self) -> int:
        """Bytes from one frame to the next."""
        return self.bytes // self.shape[2]

    def put(self, overlay: Overlay, result: Value) -> None:
        """Let the output of a convolution lie where its input lies."""
        x, index = overlay.x, result.index
        if x.index in self.lags and overlay.lag:
            self.lags[index] = self.lags[x.index] + overlay.lag
            self.behind = max(self.behind, self.lags[index])
            return
        begin = self.inside.get(x.index, self.lags.get(x.index, 0) * self.frame)
        begin += overlay.offset + overlay.lag * _bytes(x) // x.shape[2]
        self.inside[index] = begin
        missing = begin + _bytes(result) - self.value.shape[2] * self.frame
        self.behind = max(self.behind, -(-missing // self.frame))


class _Builder:
    def __init__(
        self, steps: Steps, device: torch.device, backend: str | None, precision: str, low: bool
    ) -> None:
        self._read, self._device, self._low = steps, device, low
        self._choice = (backend, precision)
        self._lasts = True
        self._values = {v.index: v for v in steps.given}
        self._buffers: dict[int, _Buffer] = {}

    def build(self) -> Schedule:
        steps: list[Step] = list(self._read.steps)
        result = self._read.result[0].index
        bounds = {s.result.index: self._bind(s) for s in steps if isinstance(s, OpStep)}
        # What an op writes where it is told to lies in the arena, but for the result, which is the caller's.
        # So does what is made in parts, or needs room in front.
        pieces = (s for s in steps if isinstance(s, OpStep) and (s.part is not None or s.sample is not None))
        must = {s.result.index for s in pieces}
        views = [o for s in steps if isinstance(s, OpStep) for o in s.operands if isinstance(o, View)]
        must |= {view.value.index for view in views}
        self._roomy = {view.value.index for view in views if view.start < 0 or _tail(view)}
        self._placed = {
            i
            for i, b in bounds.items()
            if i != result and (self._low or b.backend.write is not None or i in must)
        }
        self._placed |= {s.result.index for s in steps if isinstance(s, CallStep) and s.into} - {result}
        self._overlap(steps)
        overlays: dict[int, Overlay] = {}
        if self._low:
            steps, overlays = self._overlay(steps)
        last = self._last_reads(steps)
        planned = []
        for number, step in enumerate(steps):
            if isinstance(step, KeepStep):
                drops = {v.index for v in step.reads if last[v.index] == number} - self._placed
                planned.append(Planned(step, tuple(sorted(drops))))
                continue
            self._values[step.result.index] = step.result
            bound, filled = None, None
            if isinstance(step, OpStep):
                bound = bounds.get(step.result.index)
                if bound is None or step.part is not None or step.sample is not None:
                    bound = self._bind(step)
                filled = self._filled(step, bound)
                for view in (o for o in step.operands if isinstance(o, View)):
                    buffer = self._buffers[view.value.index]
                    buffer.front = max(buffer.front, -view.start)
                    if _tail(view):
                        buffer.behind = max(buffer.behind, buffer.lags[view.value.index] + _tail(view))
            self._give_memory(step, bound, number, last, overlays)
            drops = {v.index for v in step.reads if last[v.index] == number} - self._placed
            name, work = (None, None) if bound is None else (bound.backend.name, bound.work)
            planned.append(Planned(filled or step, tuple(sorted(drops)), name, work))
        buffers = list({id(b): b for b in self._buffers.values()}.values())
        offsets, size = place([Span(b.bytes, b.first, b.last) for b in buffers])
        at = {id(b): offset for b, offset in zip(buffers, offsets, strict=True)}
        places = {index: self._place(index, b, at[id(b)]) for index, b in self._buffers.items()}
        return Schedule(self._read, planned, places, size, self._device, self._choice, self._lasts)

    def _overlap(self, steps: Sequence[Step]) -> None:
        """What a call changes in place lies where it lay."""
        for step in steps:
            if isinstance(step, CallStep) and step.over and step.reads[0].index in self._placed:
                self._placed |= {step.result.index} - {self._read.result[0].index}

    def _last_reads(self, steps: Sequence[Step]) -> dict[int, int]:
        """Return for each value the step that reads it last; one that nobody reads goes at once."""
        last: dict[int, int] = {}
        for number, step in enumerate(steps):
            if not isinstance(step, KeepStep):
                last[step.result.index] = number
            for value in step.reads:
                last[value.index] = number
        last[self._read.result[0].index] = len(steps)
        return last

    def _overlay(self, steps: list[Step]) -> tuple[list[Step], dict[int, Overlay]]:
        """Let convolutions write over what they read, a few frames at a time."""
        last, done, overlays = self._last_reads(steps), [], {}
        for number, step in enumerate(steps):
            found = None
            if isinstance(step, OpStep) and step.op.name == _CONV and step.result.index in self._placed:
                x = step.operands[0]
                # There is no room in front of what lies inside of another value.
                roomy = step.result.index in self._roomy
                if x.index in self._placed and last[x.index] == number and not roomy:
                    found = overlaid(step, self._read)
            if found is None:
                done.append(step)
                continue
            done += found.steps
            overlays[step.result.index] = found
            self._placed |= {s.result.index for s in found.steps}
        return done, overlays

    def _give_memory(
        self, step: Step, bound: Bound | None, number: int, last: dict[int, int], overlays: dict[int, Overlay]
    ) -> None:
        index = step.result.index
        if index not in self._placed or index in self._buffers:
            return
        overlay = overlays.get(index)
        if overlay is not None:
            buffer = self._buffers[overlay.x.index]
            buffer.put(overlay, step.result)
        else:
            over = None
            if isinstance(step, CallStep):
                over = None if step.into else step.reads[0].index
            elif bound is not None:
                over = self._overwritten(step, bound, number, last)
            if over is None:
                buffer = _Buffer(step.result, number, number, lags={index: 0})
            else:
                buffer = self._buffers[over]
                if over in buffer.inside:
                    buffer.inside[index] = buffer.inside[over]
                else:
                    buffer.lags[index] = buffer.lags[over]
        buffer.last = max(buffer.last, last[index])
        self._buffers[index] = buffer

    def _overwritten(self, step: OpStep, bound: Bound, number: int, last: dict[int, int]) -> int | None:
        """Return the value that this step may overwrite: it is the last to read it."""
        if step.part is not None:
            return None
        for name, operand in zip(step.op.names, step.operands, strict=False):
            if name not in step.op.may_be_out or not isinstance(operand, Value):
                continue
            if name == "residual" and not bound.residual_may_be_out:
                continue
            alone = sum(v.index == operand.index for v in step.reads) == 1
            alike = (operand.shape, operand.dtype) == (step.result.shape, step.result.dtype)
            if alone and alike and operand.index in self._placed and last[operand.index] == number:
                if step.result.index in self._roomy and operand.index in self._buffers[operand.index].inside:
                    return None
                return operand.index
        return None

    def _filled(self, step: OpStep, bound: Bound) -> OpStep | None:
        """Return a convolution that reads frames and past in one buffer; None: it reads them apart."""
        if step.op.name != _CONV or step.part is not None or bound.reads_state_in_place:
            return None
        x, weight = step.operands[:2]
        frames = weight.get().shape[2] - 1
        buffer = self._buffers.get(x.index) if isinstance(x, Value) else None
        if (
            buffer is None
            or not frames
            or step.options[_TEMPORAL_MODE] == "valid"
            or x.index in buffer.inside
        ):
            return None
        if buffer.lags[x.index] or buffer.value.shape != x.shape:
            return None
        buffer.front = max(buffer.front, frames)
        stride, dilation, mode, spatial = step.options
        whole = View(x, -frames, x.shape[2] + frames)
        return replace(
            step,
            operands=(whole, *step.operands[1:3], None, *step.operands[4:]),
            options=(stride, dilation, "valid", spatial),
            past=step.operands[3],
            temporal_mode=mode,
        )

    def _bind(self, step: OpStep) -> Bound:
        """Check the call of an op and choose its backend, for tensors that are there but not looked at."""
        op, tensors = step.op, [self._like(operand) for operand in step.operands]
        value, memory_format = self._read.result
        like = self._blank(
            step.result.shape,
            step.result.dtype,
            memory_format if step.result.index == value.index else None,
        )
        if step.part is not None:
            like = part_of(like, step.part)
        if step.sample is not None:
            tensors[0], like = frames_of(tensors[0], step.sample), frames_of(like, step.sample)
        args = op.check(op.args(*tensors, *step.options))
        bound, lasts = op.bind(args, like, *self._choice)
        self._lasts &= lasts
        return bound

    def _like(self, operand: Operand) -> Tensor | None:
        if operand is None:
            return None
        if isinstance(operand, Weight):
            return operand.get()
        if isinstance(operand, State):
            return self._blank(operand.shape, operand.dtype) if operand.given else None
        if isinstance(operand, View):
            batch, channels, frames, *size = operand.value.shape
            front = max(-operand.start, 0)
            whole = self._blank(
                (batch, channels, front + frames + _tail(operand), *size), operand.value.dtype
            )
            return operand.of(whole, front)
        return self._blank(operand.shape, operand.dtype)

    def _blank(
        self, shape: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format | None = None
    ) -> Tensor:
        """Return a tensor that nobody reads or writes: on a CPU it takes addresses and no memory."""
        given = memory_format or self._read.memory_format
        given = given if len(shape) == 5 else torch.contiguous_format
        return torch.empty(tuple(shape), dtype=dtype, device=self._device, memory_format=given)

    def _place(self, index: int, buffer: _Buffer, offset: int) -> Place:
        value = self._values[index]
        if index in buffer.inside:
            strides = _strides(value.shape, self._read.memory_format)
            begin = offset + buffer.front * buffer.frame + buffer.inside[index]
            return Place(begin, value.shape, strides, 0)
        start = buffer.front + buffer.lags[index]
        return Place(offset, buffer.shape, _strides(buffer.shape, self._read.memory_format), start)


def _tail(view: View) -> int:
    """Return how many frames of room a view has behind its value."""
    return max(view.start + view.frames - view.value.shape[2], 0)


def _bytes(value: Value) -> int:
    return math.prod(value.shape) * value.dtype.itemsize


def _strides(shape: Sequence[int], memory_format: torch.memory_format) -> tuple[int, ...]:
    return torch.empty(tuple(shape), device="meta", memory_format=memory_format).stride()
