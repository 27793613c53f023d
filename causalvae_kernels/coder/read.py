"""From a record of calls to steps: which of them are causal convolutions, norms and resampling.

What only moves frames is not a step: it becomes a `Clip`, and a convolution reads off that what stands in
front of its frames. What is not understood is called as it was, on tensors in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map

from ..core.op import op_named
from .clips import (
    FRAMES_FIRST,
    IMAGES,
    NOTHING,
    VIDEO,
    Clip,
    Frame,
    builder,
    rearranged,
    reshape_into,
    writer,
)
from .record import NOISE, Node
from .schedule import Mismatch
from .steps import (
    CallStep,
    KeepStep,
    OpStep,
    State,
    Steps,
    Unreadable,
    Value,
    View,
    Weight,
    of_one_frame,
    outputs_of,
)


@dataclass(frozen=True)
class Split:
    """A video whose channels are two axes: (B, parts, C / parts, T, H, W)."""

    clip: Clip
    parts: int


@dataclass(frozen=True)
class Stacked:
    """Videos beside each other in a new axis behind that of the frames: (B, C, T, n, H, W)."""

    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Scaled:
    """A group norm that is not written down yet, times frames."""

    norm: Node
    scale: Clip


Form = Clip | Value | Split | Stacked | Scaled


@dataclass(frozen=True)
class Past:
    """How a state is given to a convolution: so many zeros, and its frames from one on."""

    zeros: int
    start: int


@dataclass(frozen=True)
class _Waiting:
    """A convolution that is not written down yet, because it may add what follows."""

    emit: Callable[[Value | None], Value]
    reads: Value


@dataclass(frozen=True)
class _Given:
    """An argument of a call: made from some of the values that are read."""

    first: int
    count: int
    build: Callable[..., Tensor]


class Reading:
    """Goes through a record and writes down steps.

    Args:
        steps: What is written; its first input is there.
        inputs: The nodes of all inputs; the first one is the video, the others are states, by slot.
        path_of: Returns the path of the module that a parameter belongs to.
        device: Where everything is.

    Attributes:
        pasts: By slot: how a state is given to a convolution.
        extra: The slots of states that are read by other steps: inputs behind the first one, in this order.
    """

    def __init__(
        self, steps: Steps, inputs: Sequence[Node], path_of: Callable[[Weight], str], device: torch.device
    ) -> None:
        """Know the inputs."""
        self.steps, self.pasts, self.extra = steps, {}, []
        self._path_of, self._path, self._device = path_of, "", device
        self._values: dict[int, Value] = {}
        self._forms: dict[int, Form] = {}
        self._slots: dict[int, int] = {}  # of values that are states
        self._behind: dict[int, tuple[Value, ...]] = {}  # the memory that a value may be a view of
        self._waiting: dict[int, _Waiting] = {}
        self._norms: dict[int, tuple[Clip, tuple[Any, ...], tuple[Any, ...]]] = {}  # group norms that wait
        self._done: dict[int, Node] = {}  # calls whose work was done where this node was made
        self._half: set[int] = set()  # rows are repeated, columns will be
        self._early = False
        self._seen: dict[int, list[Node]] = {}  # the nodes that are made of frames of a value
        self._end: Node | None = None
        self._format = torch.contiguous_format
        self._kept: frozenset[int] = frozenset()
        self._now = 0
        for slot, node in enumerate(inputs, -1):
            value = steps.given[0] if slot < 0 else steps.new(node.shape, node.dtype)
            self._values[value.index] = value
            if slot >= 0:
                self._slots[value.index] = slot
            self._set(node, self._clip_of(value) if len(node.shape) == 5 else value)

    def read(
        self,
        nodes: Sequence[Node],
        end: Node,
        keeps: dict[int, list[int]],
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """Write down all steps.

        Args:
            nodes: What is needed, in order.
            end: What is returned.
            keeps: Slots of what is left for the next chunk, by number of the node.
            memory_format: Of what is returned.

        Raises:
            Unreadable: Something is not what it is needed as.
        """
        self._end, self._kept, self._format = end, frozenset(keeps), memory_format
        for node in nodes:
            if node.number not in self._forms:
                self._read(node)
            for slot in keeps.get(node.number, ()):
                self._keep(node, slot)
        form = self._form(end)
        whole = self._whole(form) if isinstance(form, Clip) and form.layout == VIDEO else form
        if not isinstance(whole, Value) or not self._is_made_apart(whole):
            reads, build = self._operand(form)
            whole = self._call(
                lambda *given: _owned(build(*given).contiguous(memory_format=memory_format), given),
                *(reads, end.shape, end.dtype),
                loose=True,
            )
        self.steps.returns(whole, memory_format)

    def _is_made_apart(self, value: Value) -> bool:
        """Whether one step makes all of a value, which no other step reads: it may be returned."""
        steps = [s for s in self.steps.steps if not isinstance(s, KeepStep)]
        if any(value in step.reads for step in steps):
            return False
        made = [step for step in steps if step.result == value]
        if len(made) != 1:
            return False
        step = made[0]
        return step.part is None and step.sample is None if isinstance(step, OpStep) else not step.over

    def _read(self, node: Node) -> None:
        self._now = node.number
        weight = next(
            (w for w in tree_iter((node.args, node.kwargs), is_leaf=_is_weight) if _is_weight(w)), None
        )
        if weight is not None:
            self._path = self._path_of(weight)
        if node.number in self._done:
            self._set(node, self._form(self._done[node.number]))
            return
        handler = _HANDLERS.get(name_of(node))
        try:
            form = None if handler is None else handler(self, node, *node.args, **node.kwargs)
        except Unreadable:
            raise
        except Exception as error:  # called in a way that the handler does not know
            raise Unreadable(f"{name_of(node)}: {error}") from error
        waits = node.number in self._waiting or node.number in self._norms
        if node.number not in self._forms and not waits and not _is_several(node):
            self._set(node, self._glue(node) if form is None else form)

    def _keep(self, node: Node, slot: int) -> None:
        reads, build = self._operand(self._form(node))
        self.steps.leave(
            self._path, self._held(reads), slot, _first(lambda *g: _owned(build(*g), g), len(reads))
        )

    # Forms.

    def _clip_of(self, value: Value, layout: str = VIDEO) -> Clip:
        batch, channels, frames, height, width = value.shape
        row = tuple([Frame(value.index, i) for i in range(frames)])
        return Clip(row, batch, channels, (height, width), value.dtype, layout=layout)

    def _set(self, node: Node, form: Form) -> None:
        if isinstance(form, (Clip, Value)):
            if tuple(form.shape) != node.shape or form.dtype != node.dtype:
                raise Unreadable(f"{name_of(node)} was read as {tuple(form.shape)}, and makes {node.shape}")
        self._forms[node.number] = form
        clips = [form] if isinstance(form, Clip) else getattr(form, "clips", [getattr(form, "clip", None)])
        for index in {i for clip in clips if clip is not None for i in clip.sources}:
            self._seen.setdefault(index, []).append(node)
        if isinstance(form, Value):
            self._seen.setdefault(form.index, []).append(node)

    def _form(self, node: Node) -> Form:
        """Return what a node is; a convolution or norm that waits is written down."""
        waiting = self._waiting.pop(node.number, None)
        if waiting is not None:
            self._set_made(node, waiting.emit(None))
        norm = self._norms.pop(node.number, None)
        if norm is not None:
            clip, parameters, options = norm
            self._set(node, self._normed("group_norm", clip, parameters, (*options, None)))
        if node.number not in self._forms:
            raise Unreadable(f"several results of {name_of(node)} are used together")
        return self._forms[node.number]

    def _set_made(self, node: Node, made: Value) -> None:
        """A convolution, norm or sum makes what its node is."""
        self._set(node, self._clip_of(made, IMAGES if len(node.shape) == 4 else VIDEO))

    def _clip(self, given: Any) -> Clip | None:
        """Return an argument as frames, or None."""
        if isinstance(given, Tensor):
            zeros = given.dim() == 5 and given.device.type != "meta" and not bool(given.any())
            return _zeros(tuple(given.shape), given.dtype) if zeros else None
        form = self._form(given) if isinstance(given, Node) else None
        if isinstance(form, Value) and len(form.shape) == 5 and form.index not in self._behind:
            return self._clip_of(form)
        return form if isinstance(form, Clip) else None

    def _whole(self, clip: Clip) -> Value | None:
        """Return the value that a clip is, all of it, whatever its layout; or None."""
        index = clip.whole(lambda i: self._values[i].shape[2], lambda i: self._values[i].dtype)
        return None if index is None else self._values[index]

    def _in_memory(self, index: int) -> Value:
        """Return a value that steps may read: a state becomes an input, too."""
        slot = self._slots.get(index)
        if slot is not None and slot not in self.extra:
            self.extra.append(slot)
            self.steps.given.append(self._values[index])
        return self._values[index]

    def _video(self, clip: Clip) -> Value:
        """Return a clip as (B, C, T, H, W) in memory."""
        whole = self._whole(clip)
        if whole is not None:
            return self._in_memory(whole.index)
        clip = clip.as_video()
        woven = self._woven(clip)
        if woven is not None:
            return woven
        sources = clip.sources or [self.steps.given[0].index]
        reads = [self._in_memory(source) for source in sources]
        made = self._call(writer(clip, sources), reads, clip.shape, clip.dtype, into=True)
        for node in {n.number: n for source in clip.sources for n in self._seen.get(source, ())}.values():
            form = self._forms[node.number]
            if isinstance(form, Clip) and form.as_video() == clip:  # it need not be put together again
                self._pass_on(node, self._clip_of(made, form.layout))
        return made

    def _operand(self, form: Form) -> tuple[list[Value], Callable[..., Tensor]]:
        """Return what is read of a form, and what makes it of that."""
        if isinstance(form, Value):
            return [self._in_memory(form.index)], _same
        if isinstance(form, Split):
            reads, build = self._operand(form.clip)
            return reads, lambda *given: build(*given).unflatten(1, (form.parts, -1))
        if isinstance(form, Scaled):
            norm, scale = self._operand(self._form(form.norm)), self._operand(form.scale)
            count = len(norm[0])

            def multiply(*given: Tensor) -> Tensor:
                return norm[1](*given[:count]) * scale[1](*given[count:])

            made = self._call(multiply, [*norm[0], *scale[0]], form.scale.shape, form.scale.dtype, loose=True)
            return [made], _same
        if isinstance(form, Stacked):
            raise Unreadable("videos that were stacked are used by something that is not understood")
        sources = form.sources or [self.steps.given[0].index]
        return [self._in_memory(source) for source in sources], builder(form, sources)

    def _held(self, reads: Sequence[Value]) -> list[Value]:
        """Return what is read, and behind it the memory that must be there as well."""
        behind = dict.fromkeys(v for r in reads for v in self._behind.get(r.index, ()))
        return [*reads, *(value for value in behind if value not in reads)]

    def _call(
        self,
        call: Callable[..., Tensor | None],
        reads: Sequence[Value],
        shape: Sequence[int],
        dtype: torch.dtype,
        *,
        loose: bool = False,
        over: bool = False,
        into: bool = False,
    ) -> Value:
        """Write down a call of something."""
        value = self.steps.new(tuple(shape), dtype)
        held, make = self._held(reads), _first(call, len(reads) + into)

        def run(*given: Any) -> tuple[Tensor | None, list[Any]]:
            try:
                return make(*given), []
            except RuntimeError as error:
                if any(word in str(error) for word in ("stride", "contiguous", "view size")):
                    raise Mismatch(str(error)) from error  # not in the layout of our activations
                raise

        step = CallStep(self._path, run, tuple(held), value, keeps=False, loose=loose, over=over, into=into)
        self.steps.steps.append(step)
        self._values[value.index] = value
        return value

    def _is_last(self, value: Value, number: int) -> bool:
        """Whether nothing reads a value behind the node of this number: it may be written over."""
        if (
            self._early
            or value.index in self._slots
            or value in self.steps.given
            or value.index in self._behind
        ):
            return False
        if any(value in behind for behind in self._behind.values()):
            return False
        if any(w.reads == value for w in self._waiting.values()):
            return False
        clips = [clip for clip, *_ in self._norms.values()]
        clips += [f.scale for f in self._forms.values() if isinstance(f, Scaled)]
        if any(value.index in clip.sources for clip in clips):
            return False
        return self._is_read_no_more(value, number)

    def _is_read_no_more(self, value: Value, number: int) -> bool:
        """Whether no call behind this one is given anything that is made of a value's frames."""
        seen = self._seen.get(value.index, ())
        return all(n is not self._end and all(u.number <= number for u in n.users) for n in seen)

    # What is not understood.

    def _glue(self, node: Node) -> Value:
        """Call what is not understood as it was called."""
        func, args, kwargs = node.func, node.args, node.kwargs
        if func == "item":
            parent, index = args
            func, args, kwargs = _item_of(parent.func, index), parent.args, parent.kwargs
        if not callable(func):
            raise Unreadable(f"nobody can call {func}")
        if func is Tensor.view and all(isinstance(a, (int, tuple, list, Node)) for a in args):
            func = Tensor.reshape  # the layout of an activation is not that of the code
        reads: list[Value] = []

        def place(given: Any) -> Any:
            if not isinstance(given, Node):
                return given
            found, build = self._operand(self._form(given))
            reads.extend(found)
            return _Given(len(reads) - len(found), len(found), build)

        args, kwargs = tree_map(place, (args, kwargs), is_leaf=_is_operand)
        target = node.args[0] if getattr(func, "in_place", False) else None
        alone = target is not None and target.made and len(target.users) == 1
        alone = alone and isinstance(self._forms[target.number], Value)

        # What is returned, or what steps of ours read, is nobody else's memory.
        tight = node is self._end or any(name_of(user) in _HANDLERS for user in node.users)
        tight = tight and len(node.shape) == 5
        reshapes, ends = name_of(node) == "reshape", node is self._end and not node.users

        def call(*tensors: Tensor) -> Tensor:
            def fill(given: Any) -> Any:
                if isinstance(given, Weight):
                    return given.get()
                if not isinstance(given, _Given):
                    return given
                made = given.build(*tensors[given.first : given.first + given.count])
                return made.contiguous() if plain else made

            a, k = tree_map(fill, (args, kwargs), is_leaf=_is_operand)
            if target is not None and not alone:
                a = (a[0].clone(), *a[1:])
            if reshapes:
                return (a[0] if a else k["input"]).reshape(node.shape)
            return func(*a, **k)

        # In channels last torch forgets the factors that are no whole numbers, and convolves single channels
        # at half its speed (28 wavelets of Cosmos, 9x160x160, two Zen 3 cores: 132 ms, else 64).
        plain = name_of(node) in ("interpolate", "grid_sample") or _is_by_channel(node)
        if not reads:
            reads = [self.steps.given[0]]
            bare, call = call, lambda _: bare()
        given = next(iter((*args, *kwargs.values())), None)
        if reshapes and tight and isinstance(given, _Given) and not ends:
            return self._call(
                lambda out, *tensors: reshape_into(out, given.build(*tensors)),
                *(reads, node.shape, node.dtype),
                into=True,
            )
        if ends:
            made, call = call, lambda *tensors: made(*tensors).contiguous(memory_format=self._format)
        if tight:
            own = lambda *tensors: _owned(call(*tensors), tensors)  # noqa: E731
            return self._call(own, reads, node.shape, node.dtype, loose=ends)
        value = self._call(call, reads, node.shape, node.dtype, loose=True)
        if not node.made or getattr(func, "in_place", False):  # it may be a view
            self._behind[value.index] = tuple(self._held(reads))
        return value

    # Convolutions.

    def _conv(
        self,
        node: Node,
        input: Any,  # noqa: A002  # named as torch names it
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        dims = len(node.shape) - 2
        clip = self._images(input) if dims == 2 else self._clip(input)
        operands = (weight, bias)
        known = all(o is None or _is_weight(o) for o in operands)
        if clip is None or clip.layout != (IMAGES if dims == 2 else VIDEO) or groups != 1 or not known:
            return
        if isinstance(padding, str):
            return
        stride, padding, dilation = (_triple(v, dims) for v in (stride, padding, dilation))
        kernel = (*(1,) * (3 - dims), *weight.get().shape[2:])
        if dims == 2:
            stride, dilation, padding = (1, *stride), (1, *dilation), (0, *padding)
            weight = _viewed(weight, of_one_frame)
        clip = replace(clip, layout=VIDEO)
        if any(padding):
            height, width = padding[1:]
            frames = (NOTHING,) * padding[0]
            if clip.is_padded and clip.pad_mode != "zeros" and (height or width):
                clip = self._clip_of(self._video(clip))
            pad = tuple(a + b for a, b in zip(clip.pad, (height, height, width, width), strict=True))
            mode = clip.pad_mode if clip.is_padded else "zeros"
            clip = replace(clip, frames=(*frames, *clip.frames, *frames), pad=pad, pad_mode=mode)
        if any(k % 2 == 0 for k in kernel[1:]) or any(s not in (1, 2) for s in stride):
            return
        for form in (self._pointwise, self._downsampling, self._upsampling):
            made = form(clip, weight, bias, kernel, stride, dilation)
            if made is not None:
                made = replace(made, layout=IMAGES) if dims == 2 else made
                self._set(node, made)
                return
        self._convolution(node, clip, weight, bias, kernel, stride, dilation)

    def _images(self, given: Any) -> Clip | None:
        """Return an argument as images, of one frame if they come from something that is not understood."""
        form = self._form(given) if isinstance(given, Node) else None
        if isinstance(form, Value) and len(form.shape) == 4:
            batch, channels, *size = form.shape
            shape = (batch, channels, 1, *size)
            made = self._call(lambda x: _owned(x.unsqueeze(2), (x,)), [form], shape, form.dtype)
            return self._clip_of(made, IMAGES)
        return form if isinstance(form, Clip) else None

    def _op(self, name: str, operands: tuple[Any, ...], options: tuple[Any, ...]) -> Value:
        value = self.steps.op(self._path, op_named(name), operands, options)
        self._values[value.index] = value
        return value

    def _pointwise(
        self, clip: Clip, weight: Any, bias: Any, kernel: Any, stride: Any, dilation: Any
    ) -> Clip | None:
        """A convolution of single pixels: it commutes with repeating them, and frames."""
        sources = clip.sources
        if (
            kernel != (1, 1, 1)
            or stride != (1, 1, 1)
            or clip.is_padded
            or len(sources) != 1
            or clip.repeat == 1
        ):
            return None
        source = self._values[sources[0]]
        if NOTHING in clip.frames or any(f.part for f in clip.frames) or source.dtype != clip.dtype:
            return None
        x = self._in_memory(source.index)
        y = self._op("causal_conv3d", (x, weight, bias, None, None), (stride, dilation, "replicate", "zeros"))
        frames = tuple([Frame(y.index, f.index) for f in clip.frames])
        return replace(clip, frames=frames, channels=y.shape[1])

    def _downsampling(
        self, clip: Clip, weight: Any, bias: Any, kernel: Any, stride: Any, dilation: Any
    ) -> Clip | None:
        if (kernel, stride, dilation, clip.pad) != ((1, 3, 3), (1, 2, 2), (1, 1, 1), (0, 1, 0, 1)):
            return None
        if clip.pad_mode != "zeros" or clip.repeat > 1:
            return None
        x = self._video(replace(clip, pad=(0, 0, 0, 0)))
        return self._clip_of(self._op("downsample_conv", (x, weight, bias), (False,)))

    def _upsampling(
        self, clip: Clip, weight: Any, bias: Any, kernel: Any, stride: Any, dilation: Any
    ) -> Clip | None:
        even = (stride, dilation, kernel[1:]) == ((1, 1, 1), (1, 1, 1), (3, 3))
        if clip.repeat != 2 or not even or clip.pad != (1, 1, 1, 1) or clip.pad_mode == "reflect":
            return None
        span, small = kernel[0] - 1, replace(clip, pad=(0, 0, 0, 0), repeat=1)
        before, rest = clip.frames[:span], clip.frames[span:]
        mode = _before(before, rest) if span else "replicate"
        if mode is None or kernel[0] not in (1, 3):
            return None
        first = rest[:1] + rest[1::2] if len(rest) % 2 else ()
        for scale, lone, frames, again in (
            ((2, 2, 2), True, first, (*first[:1], *(f for f in first[1:] for _ in range(2)))),
            ((2, 2, 2), False, rest[::2], tuple(f for f in rest[::2] for _ in range(2))),
            ((1, 2, 2), False, rest, rest),
        ):
            # One frame in front of a doubled first one stands for two: only a lone first frame is repeated.
            if again != rest or not frames or (scale[0] == 2 and span and not lone and mode == "replicate"):
                continue
            if scale[0] == 2 and len(frames) == len(rest):
                continue
            x = self._video(replace(small, frames=frames))
            options = (scale, lone or scale[0] == 1, mode, clip.pad_mode)
            return self._clip_of(self._op("upsample_conv", (x, weight, bias, None), options))
        return None

    def _convolution(
        self, node: Node, clip: Clip, weight: Any, bias: Any, kernel: Any, stride: Any, dilation: Any
    ) -> None:
        """A causal convolution: what stands in front of its frames is the past, zeros, or the first one."""
        halo = tuple(d * (k - 1) // 2 for k, d in zip(kernel[1:], dilation[1:], strict=True))
        spatial = clip.pad_mode
        if clip.repeat > 1 or clip.pad != (halo[0], halo[0], halo[1], halo[1]):
            if clip.repeat > 1 or clip.is_padded:
                clip = self._clip_of(self._video(clip))
            spatial = "valid" if any(halo) else "zeros"
        clip = replace(clip, pad=(0, 0, 0, 0), pad_mode="zeros")
        span = dilation[0] * (kernel[0] - 1)
        around = self._around(clip, span)
        x, temporal, state = (around[0], "valid", None) if around else self._behind_past(clip, span)

        def emit(residual: Value | None) -> Value:
            operands, mode = (x, weight, bias, state, residual), temporal
            options: dict[str, Any] = {}
            if around is not None:
                _, before, tail = around
                operands = (View(x, -before, x.shape[2] + span), weight, bias, None, residual)
                options = {"temporal_mode": "replicate", "tail": tail}
            elif state is not None and state.shape[2] != span:
                frames = state.shape[2]
                operands = (View(x, -frames, x.shape[2] + frames), weight, bias, None, residual)
                options, mode = {"past": state, "temporal_mode": "zeros"}, "valid"
            value = self.steps.op(
                path, op_named("causal_conv3d"), operands, (stride, dilation, mode, spatial), **options
            )
            self._values[value.index] = value
            return value

        path = self._path
        if len(node.users) == 1 and name_of(node.users[0]) == "add" and node is not self._end:
            self._waiting[node.number] = _Waiting(emit, x)
        else:
            self._set_made(node, emit(None))

    def _around(self, clip: Clip, span: int) -> tuple[Value, int, int] | None:
        """Return frames whose first and last one are repeated, and how often; None: it is something else."""
        frames = clip.frames
        for tail in range(1, span + 1):
            before, rest = span - tail, frames[span - tail : len(frames) - tail]
            if len(rest) < 2 or set(frames[:before]) - {rest[0]} or set(frames[-tail:]) != {rest[-1]}:
                continue
            x = self._whole(replace(clip, frames=rest))
            # There is room around frames only where a step of ours writes them.
            if x is not None and any(isinstance(s, OpStep) and s.result == x for s in self.steps.steps):
                return x, before, tail
        return None

    def _behind_past(self, clip: Clip, span: int) -> tuple[Value, str, State | None]:
        """Return the frames in memory, what stands in front of them, and the past if that does."""
        for before in range(min(span, len(clip.frames) - 1), 0, -1):
            rest = replace(clip, frames=clip.frames[before:])
            if self._whole(rest) is None and before < span:
                continue
            front = clip.frames[:before]
            mode = _before(front, rest.frames)
            if mode is not None and before == span:
                return self._video(rest), mode, None
            state = self._past(front, clip)
            if state is None:
                continue
            x = self._video(rest)
            # Room in front of frames is there only where a step of ours writes them.
            if before == span or any(isinstance(s, OpStep) and s.result == x for s in self.steps.steps):
                self.pasts[state.slot] = Past(*self._pasts(front))
                return x, "zeros", state
        return self._video(clip), "valid" if span else "replicate", None

    def _past(self, front: Sequence[Frame], clip: Clip) -> State | None:
        """Return frames in front as a state: zeros, and the last frames of one."""
        zeros, start = self._pasts(front)
        source = front[-1].source
        if source is None or source not in self._slots or self._slots[source] in self.pasts:
            return None
        value = self._values[source]
        wanted = [Frame(source, i) for i in range(start, value.shape[2])]
        if list(front[zeros:]) != wanted or value.dtype != clip.dtype:
            return None
        shape = (clip.batch, clip.channels, len(front), *clip.size)
        return State(self._slots[source], True, shape, value.dtype, "zeros")

    def _pasts(self, front: Sequence[Frame]) -> tuple[int, int]:
        zeros = next((i for i, frame in enumerate(front) if frame != NOTHING), len(front))
        return zeros, front[zeros].index if zeros < len(front) else 0

    def _woven(self, clip: Clip) -> Value | None:
        """Channels of one convolution in turns as frames: it is written down once for each part."""
        frames = clip.frames
        source, _, part = frames[0] if frames else NOTHING
        if part is None or clip.repeat > 1 or clip.is_padded:
            return None
        parts, value = part[1], self._values[source]
        wanted = tuple([Frame(source, i, (p, parts)) for i in range(value.shape[2]) for p in range(parts)])
        steps = self.steps.steps
        at = next((i for i, s in enumerate(steps) if isinstance(s, OpStep) and s.result == value), None)
        if frames != wanted or at is None or any(value in s.reads for s in steps[at + 1 :]):
            return None
        if not self._is_last(value, self._now):
            return None
        step = steps[at]
        x, weight, bias, *others = step.operands
        if step.op.name != "causal_conv3d" or others[1] is not None or step.past is not None:
            return None
        made = self.steps.new(clip.shape, clip.dtype)
        self._values[made.index] = made
        steps[at : at + 1] = [
            replace(
                step,
                operands=(x, *(w and _viewed(w, outputs_of(p, parts)) for w in (weight, bias)), *others),
                result=made,
                part=(p, value.shape[2], parts),
            )
            for p in range(parts)
        ]
        return made

    # Norms, activations, sums.

    def _group_norm(
        self, node: Node, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> None:  # noqa: A002
        clip = self._clip(input)
        known = all(o is None or _is_weight(o) for o in (weight, bias))
        if (
            clip is None
            or not known
            or clip.layout not in (VIDEO, IMAGES)
            or any(o is not None and o.get().dtype != clip.dtype for o in (weight, bias))
        ):
            return
        users = node.users
        if len(users) == 1 and name_of(users[0]) == "mul" and [name_of(u) for u in users[0].users] == ["add"]:
            self._norms[node.number] = (clip, (weight, bias), (num_groups, eps))
            return
        self._norm(node, "group_norm", clip, (weight, bias), (num_groups, eps))

    def _mul(self, node: Node, input: Any, other: Any) -> Form | None:  # noqa: A002
        """A group norm that is scaled waits for what is added."""
        if isinstance(other, (int, float)) and other == 1:
            return self._alias(node, input)
        for norm, by in ((input, other), (other, input)):
            if not (isinstance(norm, Node) and isinstance(by, Node) and norm.number in self._norms):
                continue
            clip = self._clip(by)
            if clip is not None and clip.shape == norm.shape == node.shape and clip.dtype == norm.dtype:
                return Scaled(norm, clip)
        return None

    def _div(self, node: Node, input: Any, other: Any) -> Form | None:  # noqa: A002
        return self._alias(node, input) if isinstance(other, (int, float)) and other == 1 else None

    def _spatial_norm(self, node: Node, form: Scaled, shift: Clip) -> bool:
        """A group norm, scaled and shifted by frames that may be repeated from smaller ones."""
        clip, weights, (groups, eps) = self._norms[form.norm.number]
        scale, frames = form.scale, len(clip.frames)
        if any(c.layout != VIDEO or c.is_padded or len(c.sources) != 1 for c in (scale, shift)):
            return False
        if any(f.part or f.source is None for c in (scale, shift) for f in c.frames):
            return False
        values = [self._values[c.sources[0]] for c in (scale, shift)]
        small = values[0].shape[2]
        wanted = [i * small // frames for i in range(frames)]
        if frames % 2 and frames > 1:
            if small < 2:
                return False
            wanted = [0, *(1 + i * (small - 1) // (frames - 1) for i in range(frames - 1))]
        alike = values[0].shape == values[1].shape and all(v.dtype == clip.dtype for v in values)
        if not alike or any([f.index for f in c.frames] != wanted for c in (scale, shift)):
            return False
        self._norms.pop(form.norm.number)
        operands = (self._in_memory(v.index) for v in values)
        self._norm(node, "spatial_norm", clip, (*operands, *weights), (groups, eps))
        return True

    def _rms_norm(self, node: Node, x: Any, weight: Any, bias: Any, eps: float, axis: int = 1) -> None:
        clip = self._clip(x) if len(node.shape) == 5 else self._images(x)
        if clip is None or (clip.layout != IMAGES and clip.layout[axis] != "c"):
            raise Unreadable("a norm is given what is no video")
        weight, bias = (w if w is None else _viewed(w, torch.flatten) for w in (weight, bias))
        self._norm(node, "rms_norm", clip, (weight, bias), (eps,))

    def _norm(
        self, node: Node, name: str, clip: Clip, others: tuple[Any, ...], options: tuple[Any, ...]
    ) -> None:
        """A norm, with what is multiplied and added per channel, and with SiLU, if nothing else follows."""
        last, layout = self._moved(node, clip)
        scaled = self._scaled(last, layout, clip) if name == "rms_norm" and others == (None, None) else None
        if scaled is not None:
            last, others = scaled
            last, _ = self._moved(last, replace(clip, layout=layout))
        elif name == "rms_norm" and others[0] is None:
            ones = torch.ones(clip.channels, dtype=clip.dtype, device=self._device)
            others = (Weight({"ones": ones}, "ones"), others[1])
        silu = self._follows(last, "silu")
        if silu is not None:
            self._done[silu.number] = last
        self._set(node, self._normed(name, clip, others, (*options, silu and "silu")))

    def _normed(self, name: str, clip: Clip, others: tuple[Any, ...], options: tuple[Any, ...]) -> Clip:
        """Write down a norm; images are normed one by one."""
        x = self._video(clip)
        if name != "group_norm" or clip.layout != IMAGES or len(clip.frames) == 1:
            return self._clip_of(self._op(name, (x, *others), options), clip.layout)
        made = self.steps.new(x.shape, x.dtype)
        self._values[made.index] = made
        for sample in range(clip.batch):
            self.steps.op(self._path, op_named(name), (x, *others), options, result=made, sample=sample)
        return self._clip_of(made, clip.layout)

    def _moved(self, node: Node, clip: Clip) -> tuple[Node, str]:
        """Return the last of the calls that follow and only move what a node makes, and the layout then."""
        layout, frames_first = clip.layout, replace(clip, layout=FRAMES_FIRST).shape
        while self._has_one_user(node):
            user = node.users[0]
            apart = layout == IMAGES and name_of(user) == "reshape" and user.shape == frames_first
            if not (apart or _only_moves(user, node)):
                break
            node, axes = user, _axes_of(user)
            layout = FRAMES_FIRST if apart else layout if axes is None else _turned(layout, axes)
        return node, layout

    def _follows(self, node: Node, name: str) -> Node | None:
        """Return the only call that sees what a node makes, if it is of this name."""
        alone = self._has_one_user(node) and len(node.users) == 1
        return node.users[0] if alone and name_of(node.users[0]) == name else None

    def _scaled(self, node: Node, layout: str, clip: Clip) -> tuple[Node, tuple[Value, Value]] | None:
        """Return the sum behind `node * scale + shift`, one number per channel each, and both of these."""
        product = self._follows(node, "mul")
        total = product and self._follows(product, "add")
        if total is None or total.kwargs or layout == IMAGES or layout[1] != "c":
            return None
        factors = [a for call, one in ((product, node), (total, product)) for a in call.args if a is not one]
        wanted = (1, clip.channels, 1, 1, 1)
        if len(factors) != 2 or total.dtype != clip.dtype:
            return None
        if not all(isinstance(f, Node) and (f.shape, f.dtype) == (wanted, clip.dtype) for f in factors):
            return None
        if not all(self._read_early(factor, node.number) for factor in factors):
            return None
        made = []
        for factor in factors:
            reads, build = self._operand(self._form(factor))
            made.append(
                self._call(
                    lambda *given, build=build: _owned(build(*given).flatten(), given),
                    *(reads, (clip.channels,), clip.dtype),
                    loose=True,
                )
            )
        self._done |= {product.number: node, total.number: product}
        return total, tuple(made)

    def _read_early(self, node: Node, number: int) -> bool:
        """Read a node before its turn; tell whether that is possible.

        It is not where it is made of another one, nor where it draws noise: whoever draws between would get
        its numbers.
        """
        waiting, missing = [node], {}
        while waiting:
            one = waiting.pop()
            if one.number == number or name_of(one) in NOISE:
                return False
            if one.number not in self._forms and one.number not in missing:
                missing[one.number] = one
                waiting += one.reads
        before, self._early = (self._now, self._early), True
        for one in sorted(missing.values(), key=lambda n: n.number):
            self._read(one)
        self._now, self._early = before
        return True

    def _has_one_user(self, node: Node) -> bool:
        """Whether one call alone sees what a node makes."""
        alone = len(set(map(id, node.users))) == 1
        return alone and node is not self._end and node.number not in self._kept

    def _silu(self, node: Node, input: Any, inplace: bool = False) -> None:  # noqa: A002
        clip = self._clip(input)
        if clip is None:
            return
        x = self._video(clip)
        if self._is_last(x, node.number):
            made = self._call(lambda x: _nothing(F.silu(x, inplace=True)), [x], x.shape, x.dtype, over=True)
        else:
            made = self._call(_silu_into, [x], x.shape, x.dtype, into=True)
        self._set(node, self._clip_of(made, clip.layout))

    def _add(self, node: Node, input: Any, other: Any, alpha: float = 1) -> None:  # noqa: A002
        nodes = (input, other)
        if alpha != 1 or not all(isinstance(n, Node) and n.shape == node.shape for n in nodes):
            return
        if any(n.dtype != node.dtype for n in nodes) or input is other:
            return
        for scaled, shift in (nodes, nodes[::-1]):
            form = self._forms.get(scaled.number)
            if isinstance(form, Scaled) and form.norm.number in self._norms:
                clip = self._clip(shift)
                if clip is not None and self._spatial_norm(node, form, clip):
                    return
        waiting = [n for n in sorted(nodes, key=lambda n: n.number) if n.number in self._waiting]
        if waiting:
            last = waiting[-1]
            clip = self._clip(other if last is input else input)
            kept = self._waiting.pop(last.number)
            if clip is not None and clip.layout == (IMAGES if len(node.shape) == 4 else VIDEO):
                residual = self._video(clip)
                if len(node.shape) == 5 or residual.shape == (
                    kept.reads.shape[0],
                    clip.channels,
                    *kept.reads.shape[2:],
                ):
                    self._set_made(node, kept.emit(residual))
                    return
            self._set_made(last, kept.emit(None))
        clips = [self._clip(n) for n in nodes]
        if any(c is None for c in clips) or clips[0].layout != clips[1].layout:
            return
        layout, wholes = clips[0].layout, [self._whole(c) for c in clips]
        clips = [c.as_video() for c in clips]
        if clips[0].shape != clips[1].shape:
            return
        at = next(
            (
                at
                for at, x in enumerate(wholes)
                if x is not None and x.index not in clips[1 - at].sources and self._is_last(x, node.number)
            ),
            None,
        )
        sides = [self._operand(c) for c in clips]
        if at is not None:
            reads, build = sides[1 - at]
            given, over = [wholes[at], *reads], True

            def add(x: Tensor, *others: Tensor) -> None:
                x.add_(build(*others))

        else:
            given, over = [*sides[0][0], *sides[1][0]], False

            def add(out: Tensor, *tensors: Tensor) -> None:
                count = len(sides[0][0])
                torch.add(sides[0][1](*tensors[:count]), sides[1][1](*tensors[count:]), out=out)

        made = self._call(add, given, clips[0].shape, node.dtype, over=over, into=not over)
        self._set(node, self._clip_of(made, layout))

    # What moves frames.

    def _alias(self, node: Node, input: Any, *_: Any, **__: Any) -> Form | None:  # noqa: A002
        clip = self._clip(input)
        if clip is None and name_of(node) in ("clone", "contiguous") and isinstance(self._form(input), Value):
            return self._passed(node, self._form(input))
        if clip is None or torch.promote_types(clip.dtype, node.dtype) != node.dtype:
            kept = clip is not None and all(self._values[i].dtype == node.dtype for i in clip.sources)
            return replace(clip, dtype=node.dtype) if kept else None  # widened before: nothing is lost
        return replace(clip, dtype=node.dtype)

    def _reshape(self, node: Node, input: Any, *_: Any, **__: Any) -> Form | None:  # noqa: A002
        if not isinstance(input, Node):
            return None
        if input.dtype != node.dtype:
            raise Unreadable("the bits of an activation are taken for another dtype")
        form, shape = self._form(input), node.shape
        if isinstance(form, Stacked):
            first, count = form.clips[0], len(form.clips)
            batch, channels, frames, *size = first.shape
            if shape != (batch, channels, frames * count, *size):
                return None
            turns = tuple([clip.frames[i] for i in range(frames) for clip in form.clips])
            return self._clip_of(self._video(replace(first, frames=turns)))
        clip = self._clip(input)
        if clip is None:
            return self._passed(node, form) if isinstance(form, Value) else None
        if shape == clip.shape:
            return clip
        for layout in (VIDEO, FRAMES_FIRST, IMAGES):
            if clip.layout not in (VIDEO, FRAMES_FIRST, IMAGES):
                break
            other = replace(clip, layout=layout)
            moved = {clip.layout, layout}
            if other.shape == shape and (len(clip.frames) == 1 or moved == {FRAMES_FIRST, IMAGES}):
                return other
        if (
            clip.layout == VIDEO
            and len(shape) == 6
            and (shape[0], *shape[3:]) == (clip.shape[0], *clip.shape[2:])
        ):
            return None if any(f.part for f in clip.frames) else Split(clip, shape[1])
        return self._passed(node, form)

    def _passed(self, node: Node, form: Form) -> None:
        """Leave it to a reshape that follows alone to reshape at once: each may copy."""
        if self._follows(node, "reshape") is not None:
            self._pass_on(node, form)

    def _pass_on(self, node: Node, form: Form) -> None:
        """Let a node stand for what it is made of; the only call that sees it knows."""
        self._forms[node.number] = form
        for index in [form.index] if isinstance(form, Value) else form.sources:
            self._seen.setdefault(index, []).append(node)

    def _turn(self, node: Node, input: Any, *_: Any, **__: Any) -> Form | None:  # noqa: A002
        clip, axes = self._clip(input), _axes_of(node)
        if clip is None or axes is None or len(clip.shape) != 5:
            return None
        return replace(clip, layout=_turned(clip.layout, axes))

    def _linear(self, node: Node, input: Any, weight: Any, bias: Any = None) -> Form | None:  # noqa: A002
        """A matrix product over channels, of pixels."""
        clip = self._clip(input)
        if clip is None or len(clip.shape) != 5 or clip.layout[-1] != "c" or clip.layout[0] != "b":
            return None
        if not all(o is None or _is_weight(o) for o in (weight, bias)):
            return None
        x, layout = self._video(clip), clip.layout
        back = [layout.index(axis) for axis in VIDEO]

        def multiply(out: Tensor, x: Tensor) -> None:
            w, b = weight.get(), None if bias is None else bias.get()
            pixels, target = rearranged(x, layout), rearranged(out, layout)
            if not target.is_contiguous():
                target.copy_(F.linear(pixels, w, b))
            elif b is None:
                torch.mm(pixels.reshape(-1, w.shape[1]), w.t(), out=target.view(-1, w.shape[0]))
            else:
                torch.addmm(b, pixels.reshape(-1, w.shape[1]), w.t(), out=target.view(-1, w.shape[0]))

        shape = tuple([node.shape[axis] for axis in back])
        return self._clip_of(self._call(multiply, [x], shape, node.dtype, into=True), layout)

    def _index(self, node: Node, input: Any, index: Any) -> Form | None:  # noqa: A002
        index = index if isinstance(index, tuple) else (index,)
        if not isinstance(input, Node):
            return None
        form = self._form(input)
        dims = 6 if isinstance(form, (Split, Stacked)) else len(input.shape)
        if any(i is not None and i is not Ellipsis and not isinstance(i, (int, slice)) for i in index):
            return None
        if Ellipsis in index:
            at = index.index(Ellipsis)
            missing = dims - sum(i is not None for i in index) + 1
            index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
        index = (*index, *[slice(None)] * (dims - sum(i is not None for i in index)))
        if isinstance(form, Split):
            if not isinstance(index[1], int) or any(i != slice(None) for n, i in enumerate(index) if n != 1):
                return None
            part = (index[1] % form.parts, form.parts)
            row = tuple([_parted(f, part) for f in form.clip.frames])
            return replace(form.clip, frames=row, channels=form.clip.channels // form.parts)
        clip = self._clip(input)
        if clip is None:
            return None
        if None in index:
            rest = [i for i in index if i is not None]
            one = clip.layout == IMAGES and len(clip.frames) == 1 and index.index(None) == 2
            full = len(index) == 5 and all(i == slice(None) for i in rest)
            return clip.as_video() if one and full else None
        axis = None if clip.layout == IMAGES else clip.time
        if axis is None or any(
            not _is_all(i, n) for a, (i, n) in enumerate(zip(index, clip.shape, strict=True)) if a != axis
        ):
            return clip if all(_is_all(i, n) for i, n in zip(index, clip.shape, strict=True)) else None
        row = clip.frames[index[axis]]
        if isinstance(index[axis], int):
            return (
                replace(clip, frames=(row,), layout=IMAGES) if clip.layout in (VIDEO, FRAMES_FIRST) else None
            )
        return replace(clip, frames=row)

    def _narrow(self, node: Node, input: Any, dim: int, start: int, length: int) -> Form | None:  # noqa: A002
        index = [slice(None)] * len(node.shape)
        index[dim] = slice(start, start + length) if start >= 0 else slice(start, start + length or None)
        return self._index(node, input, tuple(index))

    def _select(self, node: Node, input: Any, dim: int, index: int) -> Form | None:  # noqa: A002
        whole: list[Any] = [slice(None)] * (len(node.shape) + 1)
        whole[dim] = index
        return self._index(node, input, tuple(whole))

    def _item(self, node: Node, parent: Node, number: int) -> Form | None:
        """One of several results: a part in time, or of the channels."""
        name, (x, *rest) = name_of(parent), parent.args
        clip = self._clip(x) if name in ("chunk", "split", "split_with_sizes", "unbind") else None
        if clip is None or clip.layout not in (VIDEO, IMAGES):
            return None
        dims = len(clip.shape)
        dim = parent.kwargs.get("dim", rest[-1] if len(rest) == (1 if name == "unbind" else 2) else 0) % dims
        if clip.layout == IMAGES and (dim != 1 or name == "unbind"):
            return None
        sizes = {user.args[1]: user.shape[dim] if len(user.shape) == dims else 1 for user in parent.users}
        if name == "unbind":
            return replace(clip, frames=(clip.frames[number],), layout=IMAGES) if dim == 2 else None
        start = self._starts(parent, clip.shape[dim], dim).get(number)
        if start is None:
            return None
        length = sizes[number]
        if dim == 2:
            return replace(clip, frames=clip.frames[start : start + length])
        if dim == 1 and length and clip.channels % length == 0 and start % length == 0:
            if length == clip.channels:
                return clip
            part = (start // length, clip.channels // length)
            if any(f.part for f in clip.frames):
                return None
            return replace(clip, frames=tuple([_parted(f, part) for f in clip.frames]), channels=length)
        return None

    def _starts(self, parent: Node, length: int, dim: int) -> dict[int, int]:
        """Return where each part of a split begins."""
        given = parent.args[1] if len(parent.args) > 1 else None
        for name in ("split_size", "split_size_or_sections", "split_sizes", "chunks"):
            given = parent.kwargs.get(name, given)
        if isinstance(given, (tuple, list)):
            sizes = list(given)
        elif not isinstance(given, int):
            return {}
        else:
            size = -(-length // given) if name_of(parent) == "chunk" else given
            sizes = [min(size, length - start) for start in range(0, length, size)]
        return {i: sum(sizes[:i]) for i in range(len(sizes))}

    def _cat(self, node: Node, tensors: Any, dim: int = 0) -> Form | None:
        clips = [self._clip(t) for t in tensors]
        if any(c is None for c in clips):
            return None
        if len(clips) == 1:
            return clips[0]
        dim %= len(node.shape)
        if (
            dim == 1
            and clips[0].layout in (VIDEO, IMAGES)
            and all(c.layout == clips[0].layout for c in clips)
        ):
            return _joined(clips)
        if dim != clips[0].time or any(c.layout != clips[0].layout for c in clips):
            return None
        alike = [replace(c, frames=()) for c in clips if set(c.frames) != {NOTHING}]
        if any(c != alike[0] for c in alike[1:]):
            clips = [self._clip_of(self._video(c), c.layout) for c in clips]
            alike = [replace(c, frames=()) for c in clips]
            if any(c != alike[0] for c in alike[1:]):
                return None
        like = alike[0] if alike else clips[0]
        return replace(like, frames=tuple([f for c in clips for f in c.frames]))

    def _stack(self, node: Node, tensors: Any, dim: int = 0) -> Form | None:
        clips = [self._clip(t) for t in tensors]
        if (
            any(c is None or c.layout != VIDEO or c.shape != clips[0].shape for c in clips)
            or dim % len(node.shape) != 3
        ):
            return None
        return Stacked(tuple(clips))

    def _repeat(self, node: Node, input: Any, *sizes: Any, **kwargs: Any) -> Form | None:  # noqa: A002
        clip = self._clip(input)
        counts = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        if clip is None or clip.layout != VIDEO or len(counts) != 5:
            return None
        if counts[1] > 1 and all(c == 1 for i, c in enumerate(counts) if i != 1):
            reads, build = self._operand(clip)

            def repeat(out: Tensor, *given: Tensor) -> None:
                reshape_into(out, build(*given).unsqueeze(1).expand(-1, counts[1], -1, -1, -1, -1))

            return self._clip_of(self._call(repeat, reads, node.shape, node.dtype, into=True))
        if any(c != 1 for i, c in enumerate(counts) if i != 2):
            return None
        return replace(clip, frames=clip.frames * counts[2])

    def _expand(self, node: Node, input: Any, *_: Any, **__: Any) -> Form | None:  # noqa: A002
        clip = self._clip(input)
        if clip is None or clip.layout != VIDEO or len(node.shape) != 5 or len(clip.frames) != 1:
            return None
        made = replace(clip, frames=clip.frames * node.shape[2])
        return made if made.shape == node.shape else None

    def _repeat_interleave(
        self, node: Node, input: Any, repeats: Any, dim: Any = None, **_: Any
    ) -> Form | None:  # noqa: A002
        clip = self._clip(input)
        if clip is None or clip.layout != VIDEO or dim is None or not isinstance(repeats, int):
            return None
        if dim % 5 == 3 and not clip.is_padded:
            follows = self._follows(node, "repeat_interleave")
            if follows is not None and (follows.args[1:], follows.kwargs) in (
                ((repeats, 4), {}),
                ((repeats,), {"dim": 4}),
                ((), {"repeats": repeats, "dim": 4}),
            ):
                self._half.add(node.number)
                self._pass_on(node, clip)
            return None
        if input.number in self._half:
            return replace(clip, repeat=clip.repeat * repeats)
        if dim % 5 != 2:
            return None
        return replace(clip, frames=tuple([f for f in clip.frames for _ in range(repeats)]))

    def _pad(
        self, node: Node, input: Any, pad: Any, mode: str = "constant", value: Any = None
    ) -> Form | None:  # noqa: A002
        clip = self._clip(input)
        if (
            clip is None
            or clip.layout not in (VIDEO, IMAGES)
            or value
            or mode not in ("constant", "replicate", "reflect")
        ):
            return None
        left, right, top, bottom, front, back, *more = (*pad, *[0] * (6 - len(pad)))
        if any(more) or min(left, right, top, bottom, front, back) < 0:
            return None
        if clip.layout == IMAGES and (front or back):
            return None
        around, mode = (top, bottom, left, right), "zeros" if mode == "constant" else mode
        if (front or back) and mode == "reflect":
            return None
        if any(around):
            if clip.is_padded and (mode != "zeros" or clip.pad_mode != "zeros"):
                return None
            clip = replace(
                clip, pad=tuple(a + b for a, b in zip(clip.pad, around, strict=True)), pad_mode=mode
            )
        first, last = (clip.frames[0], clip.frames[-1]) if mode == "replicate" else (NOTHING, NOTHING)
        return replace(clip, frames=((first,) * front + clip.frames + (last,) * back))

    def _interpolate(
        self,
        node: Node,
        input: Any,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        *_: Any,
        **__: Any,
    ) -> Form | None:  # noqa: A002
        clip = self._clip(input)
        if (
            clip is None
            or clip.layout not in (VIDEO, IMAGES)
            or clip.is_padded
            or mode not in ("nearest", "nearest-exact")
        ):
            return None
        given = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,)
        if any(f is not None and f != int(f) for f in given) or any(_) or any(__.values()):
            return None
        times = [n / m for n, m in zip(node.shape[-2:], clip.shape[-2:], strict=True)]
        if times[0] != times[1] or times[0] != int(times[0]):
            return None
        frames = clip.frames
        if clip.layout == VIDEO:
            count = node.shape[2] // len(frames)
            if count * len(frames) != node.shape[2]:
                return None
            frames = tuple([f for f in frames for _ in range(count)])
        return replace(clip, frames=frames, repeat=clip.repeat * int(times[0]))

    def _write(self, node: Node, target: Any, index: Any, value: Any) -> Form | None:
        """Frames that are written into memory that was made for them."""
        clip, new = self._clip(target), self._clip(value)
        index = index if isinstance(index, tuple) else (index,)
        if clip is None or new is None or {clip.layout, new.layout} != {VIDEO} or Ellipsis in index[:-1]:
            return None
        index = (*(i for i in index if i is not Ellipsis), *[slice(None)] * 5)[:5]
        if any(not _is_all(i, n) for a, (i, n) in enumerate(zip(index, clip.shape, strict=True)) if a != 2):
            return None
        blank = set(clip.frames) == {NOTHING}
        if not isinstance(index[2], slice) or new.shape[3:] != clip.shape[3:] or new.dtype != clip.dtype:
            return None
        if not blank and replace(clip, frames=()) != replace(new, frames=()):
            return None
        row = list(clip.frames)
        if len(row[index[2]]) != len(new.frames):
            return None
        row[index[2]] = new.frames
        return replace(new, frames=tuple(row))

    def _zeros(self, node: Node, *_: Any, **__: Any) -> Form | None:
        return _zeros(node.shape, node.dtype) if len(node.shape) == 5 else None


def name_of(node: Node) -> str:
    """Return the word for what a node calls."""
    if isinstance(node.func, str):
        return node.func
    name = getattr(node.func, "__name__", "")
    return _NAMES.get(name, name)


def fuse(nodes: Sequence[Node]) -> None:
    """Let `x * sigmoid(x)` be SiLU, which it is."""
    for node in nodes:
        if name_of(node) != "mul" or node.kwargs or len(node.args) != 2:
            continue
        for x, gate in (node.args, node.args[::-1]):
            if isinstance(gate, Node) and name_of(gate) == "sigmoid" and gate.args[:1] == (x,):
                for read in node.reads:
                    read.users.remove(node)
                node.func, node.args = F.silu, (x,)
                x.users.append(node)
                break


def _axes_of(node: Node) -> tuple[int, ...] | None:
    """Return which axes a call puts in which order, of five; None: it does something else."""
    name, given = name_of(node), list(node.args[1:])
    given += [node.kwargs[k] for k in ("dims", "source", "dim0", "destination", "dim1") if k in node.kwargs]
    if len(node.shape) != 5 or name not in ("permute", "transpose", "movedim"):
        return None
    given = list(given[0]) if name == "permute" and len(given) == 1 else given
    if not all(isinstance(axis, int) for axis in given):
        return None
    given = [axis % 5 for axis in given]
    if name == "permute":
        return tuple(given)
    axes = list(range(5))
    if name == "transpose":
        axes[given[0]], axes[given[1]] = axes[given[1]], axes[given[0]]
    else:
        axes.insert(given[1], axes.pop(given[0]))
    return tuple(axes)


def _turned(layout: str, axes: tuple[int, ...]) -> str:
    return "".join([layout[axis] for axis in axes])


def _only_moves(node: Node, like: Node) -> bool:
    """Whether a call returns the numbers of what it is given first, maybe in another order of axes."""
    if not node.args or node.args[0] is not like or like.dtype != node.dtype:
        return False
    if _axes_of(node) is not None:
        return True
    return like.shape == node.shape and name_of(node) in ("reshape", "clone", "contiguous")


def _before(front: Sequence[Frame], rest: Sequence[Frame]) -> str | None:
    """Return what stands in front of a first chunk, or None if it is something else."""
    if all(frame == NOTHING for frame in front):
        return "zeros"
    return "replicate" if all(frame == rest[0] for frame in front) else None


def _parted(frame: Frame, part: tuple[int, int]) -> Frame:
    return frame if frame == NOTHING else frame._replace(part=part)


def _joined(clips: Sequence[Clip]) -> Clip | None:
    """Return what parts of channels were before they were parted, or None."""
    first = clips[0]
    for number, clip in enumerate(clips):
        parts = {f.part for f in clip.frames if f != NOTHING}
        if parts != {(number, len(clips))} or replace(clip, frames=()) != replace(first, frames=()):
            return None
    rows = [tuple([f._replace(part=None) for f in clip.frames]) for clip in clips]
    if any(row != rows[0] for row in rows):
        return None
    return replace(first, frames=rows[0], channels=first.channels * len(clips))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Clip:
    batch, channels, frames, height, width = shape
    return Clip((NOTHING,) * frames, batch, channels, (height, width), dtype)


def _owned(made: Tensor, given: Sequence[Tensor]) -> Tensor:
    """Return a tensor in memory of its own, without the room that there may be between its elements."""
    storage = made.untyped_storage().data_ptr()
    if not any(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == storage for x in given):
        return made
    last = made.dim() == 5 and made.shape[1] > 1 and made.stride(1) == 1
    return made.clone(memory_format=torch.channels_last_3d if last else torch.contiguous_format)


def _first(call: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Return a function that passes on its first arguments; the others only have to be there."""
    return lambda *given: call(*given[:count])


def _item_of(func: Callable[..., Any], index: int) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: func(*args, **kwargs)[index]


def _is_by_channel(node: Node) -> bool:
    """Whether a call convolves each channel by itself."""
    if name_of(node) not in ("conv3d", "conv_transpose3d") or len(node.args) < 2:
        return False
    weight = node.args[1].get() if _is_weight(node.args[1]) else node.args[1]
    return len(weight.shape) == 5 and weight.shape[1] == 1


def _is_several(node: Node) -> bool:
    return bool(node.users) and all(user.func == "item" for user in node.users)


def _is_weight(given: Any) -> bool:
    return isinstance(given, Weight)


def _is_operand(given: Any) -> bool:
    return isinstance(given, (Node, Weight, _Given))


def _is_all(index: Any, length: int) -> bool:
    return isinstance(index, slice) and index.indices(length) == (0, length, 1)


def _same(x: Tensor) -> Tensor:
    return x


def _silu_into(out: Tensor, x: Tensor) -> None:
    torch.ops.aten.silu.out(x, out=out)


def _nothing(_: Tensor) -> None:
    """Say that what was given was changed in place."""


def _triple(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _viewed(weight: Weight, view: Callable[[Tensor], Tensor]) -> Weight:
    before = weight.view
    return weight._replace(view=view if before is None else lambda tensor: view(before(tensor)))


_NAMES = {
    "__add__": "add",
    "__radd__": "add",
    "__iadd__": "add",
    "__mul__": "mul",
    "__rmul__": "mul",
    "__truediv__": "div",
    "true_divide": "div",
    "concat": "cat",
    "concatenate": "cat",
    "view": "reshape",
    "view_as": "reshape",
    "reshape_as": "reshape",
    "flatten": "reshape",
    "unflatten": "reshape",
    "squeeze": "reshape",
    "unsqueeze": "reshape",
    "moveaxis": "movedim",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "_pad": "pad",
}
_HANDLERS: dict[str, Callable[..., Any]] = {
    "conv3d": Reading._conv,
    "conv2d": Reading._conv,
    "group_norm": Reading._group_norm,
    "rms_norm of ours": Reading._rms_norm,
    "silu": Reading._silu,
    "add": Reading._add,
    "mul": Reading._mul,
    "div": Reading._div,
    "clone": Reading._alias,
    "contiguous": Reading._alias,
    "to": Reading._alias,
    "float": Reading._alias,
    "half": Reading._alias,
    "bfloat16": Reading._alias,
    "type": Reading._alias,
    "type_as": Reading._alias,
    "reshape": Reading._reshape,
    "permute": Reading._turn,
    "movedim": Reading._turn,
    "linear": Reading._linear,
    "transpose": Reading._turn,
    "__getitem__": Reading._index,
    "narrow": Reading._narrow,
    "select": Reading._select,
    "item": Reading._item,
    "cat": Reading._cat,
    "stack": Reading._stack,
    "repeat": Reading._repeat,
    "expand": Reading._expand,
    "repeat_interleave": Reading._repeat_interleave,
    "pad": Reading._pad,
    "interpolate": Reading._interpolate,
    "__setitem__": Reading._write,
    "empty": Reading._zeros,
    "zeros": Reading._zeros,
    "zeros_like": Reading._zeros,
    "new_zeros": Reading._zeros,
}
