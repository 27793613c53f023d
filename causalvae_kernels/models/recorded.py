"""Coders that nobody wrote a reader for: their own code is recorded once for each shape, and run as steps.

A coder is any module with several convolutions that makes one video of a video. What it changes in lists that
it is given and on its modules, such as the caches of Wan's and CogVideoX's original code, are states.
"""

from __future__ import annotations

import collections
import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..coder import OpStep, Steps, Unreadable, Value
from ..coder import record as recording
from ..coder.read import Reading, fuse
from ..coder.record import Node, Recorder, differ, live
from ..coder.steps import Weight
from ..core.dry_run import is_plain_tensor
from ..temporal.state import behind_zeros
from . import scheduled
from .coders import draws, is_bypassable, norms_format, wants_gradient
from .fingerprint import Kinds, setting_names
from .swap import Link

_ABSENT = "there is no such attribute"


@dataclass(frozen=True)
class New:
    """A state that a run leaves, by slot."""

    slot: int


@dataclass(frozen=True)
class Same:
    """A tensor that was given, by its place among the leaves."""

    leaf: int


@dataclass(frozen=True)
class Container:
    """A list or dictionary that was given, by number."""

    number: int


class Result:
    """What the schedule returns."""


@dataclass(frozen=True)
class Recorded:
    """What a run of a coder needs and does beside its schedule.

    Attributes:
        reading: How its states are given.
        returns: What it returns.
        containers: By number of the list or dictionary among those that are given: what it holds afterwards.
        attributes: What modules hold afterwards.
    """

    reading: Reading
    returns: Any
    containers: dict[int, Any]
    attributes: list[tuple[nn.Module, str, Any]]


def coder(module: nn.Module, link: Link, *args: Any, **kwargs: Any) -> Any:
    """A module with several convolutions: its own code, or the steps that it was found to be."""
    made = None
    watched = torch.compiler.is_compiling() or recording.current() is not None
    if not watched and not wants_gradient(module, ()):
        made = _run(module, link, args, kwargs)
    return type(module).forward(module, *args, **kwargs) if made is None else made[0]


def record_rms_norm(
    module: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 0.0, axis: int = 1
) -> Tensor:
    """Write down an RMS norm over an axis, or what the code of its module does if dtypes are mixed."""
    if any(p is not None and p.dtype != x.dtype for p in (weight, bias)):
        return type(module).forward(module, x)
    return recording.current().op("rms_norm of ours", x, x, weight, bias, eps, axis)


def _run(module: nn.Module, link: Link, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
    leaves, spec = tree_flatten((args, kwargs))
    attributes = link.coders.attributes.get(module, ())
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors or tensors[0].dim() != 5 or not all(map(_is_const, leaves)):
        return None
    containers = _containers_in((args, kwargs))
    if len(set(map(id, containers))) < len(containers) or any(
        type(c) not in (list, dict) for c in containers
    ):
        return None
    x, *states = tensors
    words = [part.__dict__.get(name, _ABSENT) for part, name in attributes]
    if any(not isinstance(w, (Tensor, type(None), torch.Size)) and w is not _ABSENT for w in words):
        return None
    states += [word for word in words if isinstance(word, Tensor)]
    if not all(_is_simple(state, x) for state in states):
        return None

    def read(steps: Steps, _: Value) -> Recorded:
        return _read(module, link, steps, leaves, spec)

    kinds = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf) for leaf in leaves]
    held = [
        (place, (word.shape, word.dtype) if isinstance(word, Tensor) else word)
        for place, word in enumerate(words)
        if word is not None
    ]
    known = scheduled.look_up(
        *(module, link, x, read),
        first=False,
        others=(spec, *kinds, *held),
        aside=lambda: link.coders.attributes.get(module, ()),
        look=Kinds,
    )
    schedule = scheduled.usable(known, x)
    if schedule is None:
        return None
    found: Recorded = known.more
    reading = found.reading
    old: list[Any] = [None] * len(schedule.slots)
    for slot, past in reading.pasts.items():
        old[slot] = behind_zeros(states[slot][:, :, past.start :], past.zeros)
    done = scheduled.run(schedule, link, x, old, extra=[states[slot] for slot in reading.extra])
    if done is None:
        return None
    made, new = done
    given = [x, *states]

    def realised(value: Any) -> Any:
        if isinstance(value, New):
            return new[value.slot]
        if isinstance(value, Same):
            return given[value.leaf]
        if isinstance(value, Container):
            return containers[value.number]
        if type(value) in (list, tuple):
            return type(value)(map(realised, value))
        if type(value) is dict:
            return {key: realised(item) for key, item in value.items()}
        return made if value is Result else value

    for number, items in found.containers.items():
        refill(containers[number], realised(items))
    for part, name, value in found.attributes:
        part.__dict__[name] = realised(value)
    return (realised(found.returns),)


def _is_const(leaf: Any) -> bool:
    return isinstance(leaf, (Tensor, bool, int, float, str, type(None), torch.dtype, torch.device))


def _is_simple(state: Tensor, x: Tensor) -> bool:
    plain = is_plain_tensor(state) and state.device == x.device
    return plain and not state.is_neg() and not (torch.is_grad_enabled() and state.requires_grad)


def _containers_in(given: Any) -> list[Any]:
    """Return the lists and dictionaries among arguments, in the order of a walk through them."""
    if isinstance(given, (Tensor, str)) or given is None:
        return []
    items = given.values() if isinstance(given, dict) else given if _is_several(given) else ()
    own = [given] if _is_several(given) and type(given) is not tuple else []
    return [*own, *(found for item in items for found in _containers_in(item))]


def _is_several(given: Any) -> bool:
    return isinstance(given, (list, tuple, dict, set, collections.deque))


def refill(container: Any, items: Any) -> None:
    """Let a container, or an object, hold something else."""
    if hasattr(container, "__dict__") and not isinstance(container, (list, dict, set, collections.deque)):
        _set_back(container.__dict__, vars(items))
        return
    container.clear()
    container.extend(items) if isinstance(container, (list, collections.deque)) else container.update(items)


def _set_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Let a namespace hold what it held, touching nothing that is as it was: others may look at it."""
    for name in now.keys() - before.keys():
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _has_defaults(module: nn.Module) -> bool:
    return bool(getattr(type(module).forward, "__defaults__", None))


def _items_of(held: Any) -> list[Any]:
    """Return what a container or an object holds."""
    if isinstance(held, dict):
        return list(held.values())
    if isinstance(held, (list, tuple, set, collections.deque)):
        return list(held)
    plain = hasattr(held, "__dict__") and not isinstance(held, (type, nn.Module, Tensor, torch.Generator))
    return list(vars(held).values()) if plain and not callable(held) else []


def _nested(roots: Sequence[Any], most: int = 10_000) -> list[Any]:
    """Return the containers and objects that may change in place, however deep they lie."""
    found: dict[int, Any] = {}
    waiting, seen = list(roots), 0
    while waiting and seen < most:
        held, seen = waiting.pop(), seen + 1
        items = _items_of(held)
        if id(held) in found or isinstance(held, (Tensor, nn.Module)):
            continue
        if items or isinstance(held, (list, dict, set, collections.deque)):
            if not isinstance(held, (tuple, frozenset)):
                found[id(held)] = held
            waiting += items
    return list(found.values())


def _read(module: nn.Module, link: Link, steps: Steps, leaves: Sequence[Any], spec: Any) -> Recorded:
    """Record a coder, and write down its steps."""
    if draws(module):
        raise Unreadable("dropout draws in the layout that it sees")
    if not all(is_bypassable(part) for part in module.modules()):
        raise Unreadable("a module inside is hooked")
    with link.coders.recording:
        return _Recording(module, link, steps, leaves, spec).read()


class _Recording:
    """One run of a coder's code, and what was made of it."""

    def __init__(self, module: nn.Module, link: Link, steps: Steps, leaves: Sequence[Any], spec: Any) -> None:
        self._module, self._link, self._steps = module, link, steps
        self._leaves, self._spec = leaves, spec
        self._paths: dict[tuple[int, str], str] = {}
        self._weights: dict[int, Weight] = {}
        for path, part in module.named_modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if tensor.is_neg() or not is_plain_tensor(tensor):
                        raise Unreadable(f"{path}.{name} is a {type(tensor).__name__}")
                    if self._weights.setdefault(id(tensor), Weight(tensors, name)).parameters is not tensors:
                        raise Unreadable(f"{path}.{name} is a weight that has another place, too")
                    self._paths[id(tensors), name] = path
        self._before = [(part, dict(part.__dict__)) for part in module.modules()]
        # What code may change in place; recording it must leave no trace.
        self._tensors = [
            (tensors, dict(tensors))
            for part in module.modules()
            for tensors in (part._parameters, part._buffers, part._modules)
        ]
        roots: list[Any] = [part.__dict__[name] for part in module.modules() for name in setting_names(part)]
        roots += [type(part).forward.__defaults__ for part in module.modules() if _has_defaults(part)]
        self._mutable = [(held, copy.copy(held)) for held in _nested(roots)]
        if any(isinstance(item, Tensor) for _, held in self._mutable for item in _items_of(held)):
            raise Unreadable("a list or an object on a module holds a tensor")
        self._held = self._attributes()

    def read(self) -> Recorded:
        """Record the code, twice, and write down its steps."""
        nodes = self._record(1)
        if differ(nodes, self._record(2)):
            raise Unreadable("it does something else from call to call")
        recorder, link, steps = self._recorder, self._link, self._steps
        for number in range(len(self._inputs) - 1):
            steps.slot(("state", number))
        self._keeps: dict[int, list[int]] = {}
        self._end = self._video_in(self._made)
        after = {
            number: self._items(now)
            for number, (now, before) in enumerate(zip(self._containers, self._contents, strict=True))
            if not _same_items(now, before)
        }
        returns = self._described(self._made)
        attributes = [(part, name, self._described(value)) for part, name, value in self._changes]
        kept = [node for node in recorder.nodes if node.number in self._keeps]
        fuse(recorder.nodes)
        ends = [self._end, *kept, *self._inputs, *recorder.noise]
        paths = self._paths
        reading = Reading(
            *(steps, self._inputs),
            path_of=lambda w: paths.get((id(w.parameters), w.name), ""),
            device=recorder.device,
        )
        reading.read(live(recorder.nodes, iter(ends)), self._end, self._keeps, self._format)
        steps.memory_format = self._memory_format()
        before = link.coders.attributes.get(self._module, ())
        known = dict.fromkeys((*before, *self._held, *((part, name) for part, name, _ in self._changes)))
        link.coders.attributes[self._module] = tuple(known)
        return Recorded(reading, returns, after, attributes)

    def _record(self, seed: int) -> list[Node]:
        """Run the code once; modules are left as they were, and so are generators of random numbers."""
        device = next(leaf for leaf in self._leaves if isinstance(leaf, Tensor)).device
        self._recorder = recorder = Recorder(self._weights, device)
        taken = [recorder.take(leaf) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = tree_unflatten(taken, self._spec)
        self._containers = _containers_in((args, kwargs))
        self._contents = [copy.copy(items) for items in self._containers]
        inputs = [leaf for leaf in taken if isinstance(leaf, Tensor)]
        changed = False
        randoms = random.getstate(), torch.get_rng_state()
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            for part, name in self._held:
                part.__dict__[name] = recorder.take(part.__dict__[name])
                inputs.append(part.__dict__[name])
            with recorder:
                self._made = type(self._module).forward(self._module, *args, **kwargs)
            self._changes = list(self._changed())
        except (Unreadable, KeyboardInterrupt):
            raise
        except Exception as error:  # what it looks at is not there; or it is wrong, and says so when it runs
            raise Unreadable(f"{type(error).__name__}: {error}") from error
        finally:
            random.setstate(randoms[0])
            torch.set_rng_state(randoms[1])
            for part, state in self._before:
                _set_back(part.__dict__, state)
            for now, before in (*self._tensors, *self._mutable):
                if not _same_items(now, before):
                    changed = True
                    refill(now, before)
        if changed:
            raise Unreadable("it changes a list, a dictionary or a buffer on a module")
        self._inputs = [recorder.node_of(x) for x in inputs]
        return recorder.nodes

    def _memory_format(self) -> torch.memory_format:
        """Return the layout of all activations: channels last, unless group norms are slow there."""
        steps = [s for s in self._steps.steps if isinstance(s, OpStep) and s.op.name == "group_norm"]
        if not steps:
            return torch.channels_last_3d
        largest = max(steps, key=lambda s: math.prod(s.result.shape))
        value, (groups, *_) = largest.result, largest.options
        found = norms_format(value.shape, groups, self._link, self._recorder.device, value.dtype)
        return torch.contiguous_format if found is None else found

    def _attributes(self) -> list[tuple[nn.Module, str]]:
        """Return the attributes that hold states now: those that are known may be tensors."""
        known = self._link.coders.attributes.get(self._module, ())
        found = [
            (part, name)
            for part, state in self._before
            for name in setting_names(part)
            if isinstance(state[name], Tensor)
        ]
        if found and not set(found) <= set(known):
            raise Unreadable(f"{found[0][1]} of a {type(found[0][0]).__name__} holds a tensor")
        return [place for place in known if place in found]

    def _changed(self) -> Iterator[tuple[nn.Module, str, Any]]:
        """Give the attributes that the code has set."""
        for part, before in self._before:
            now = part.__dict__
            if before.keys() - now.keys():
                raise Unreadable(f"it deletes an attribute of a {type(part).__name__}")
            for name, value in now.items():
                if name in before and before[name] is value:
                    continue
                node = self._recorder.node_of(value)
                if node is None and not isinstance(value, (torch.Size, type(None))):
                    raise Unreadable(f"it sets {name} of a {type(part).__name__} to a {type(value).__name__}")
                yield part, name, value

    def _video_in(self, made: Any) -> Node:
        """Return the first video of what the code returns."""
        for part in (made,) if isinstance(made, Tensor) else tree_flatten(made)[0]:
            node = self._recorder.node_of(part)
            if node is not None and len(node.shape) == 5 and node not in self._inputs:
                last = not part.is_contiguous() and part.is_contiguous(memory_format=torch.channels_last_3d)
                self._format = torch.channels_last_3d if last else torch.contiguous_format
                return node
        raise Unreadable(f"it returns a {type(made).__name__}, expected a video")

    def _items(self, container: Any) -> Any:
        if isinstance(container, dict):
            return {key: self._described(item) for key, item in container.items()}
        return [self._described(item) for item in container]

    def _described(self, value: Any) -> Any:
        """Return what a list or a module holds afterwards in words that do not depend on this run."""
        if type(value) in (list, dict):
            number = next((n for n, given in enumerate(self._containers) if given is value), None)
            return self._items(value) if number is None else Container(number)
        if type(value) is tuple:
            return tuple([self._described(item) for item in value])
        node = self._recorder.node_of(value)
        if node is None:
            if not (_is_const(value) or isinstance(value, torch.Size)) or isinstance(value, Tensor):
                raise Unreadable(f"it leaves a {type(value).__name__}")
            return value
        if node is self._end:
            return Result
        if node in self._inputs:
            return Same(self._inputs.index(node))
        slots = self._keeps.setdefault(node.number, [])
        slots.append(self._steps.slot(("left", len(self._steps.slots))))
        return New(slots[-1])


def _same_items(now: Any, before: Any) -> bool:
    """Whether a container or an object holds the very things that its copy holds."""
    if not isinstance(now, (list, dict, set, collections.deque)):
        now, before = vars(now), vars(before)
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        return all(key in before and before[key] is item for key, item in now.items())
    if isinstance(now, set):
        return now == before
    return all(a is b for a, b in zip(now, before, strict=True))
