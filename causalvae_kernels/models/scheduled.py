"""The schedules of a swap: one for each encoder or decoder, each shape, and what else decides.

They are kept with the swap and looked up on every call. What is asked on the way is cheap; what has changed
since a coder was read makes it be read again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..coder import Arena, Mismatch, Schedule, Steps, Unreadable, Value, Watch, build
from ..coder.arena import stream_of
from ..core import dry_run, env, machine_memory, memory
from ..core.dry_run import is_plain_tensor
from ..core.precision import SETTING as PRECISION
from ..core.precision import resolve_precision
from ..core.selection import SETTING as BACKEND
from .hooks import why_globally_hooked

Read = Callable[[Steps, Value], Any]
"""`read(steps, x)` records what a coder makes of `x`; raises `Unreadable` where it cannot tell."""

# Coders that are kept, one for each shape: those of the chunks and tiles of a few clips; and where a decoder
# cannot be recorded as a whole, of each of its blocks.
_MOST = 512


@dataclass
class Known:
    """A coder that was read, for one shape and what else decides."""

    watch: Watch
    schedule: Schedule | None  # None: unreadable, as long as nothing changes
    steps: Steps | None = None  # what was read
    more: Any = None  # what the reader returned
    looked: Any = None  # what `look` returned
    why: str = ""  # it is unreadable


@dataclass(eq=False)
class Coders:
    """What a swap keeps of its coders; copies and pickles of the model begin without it.

    On a CPU the memory of activations stays from call to call, up to an eighth of the machine's: fresh pages
    cost a decode a fifth of its time on a virtual machine (CogVideoX-2b's widths, 3 latents of 12x18, 255 MB,
    two Zen 3 cores: 5.2 s, with memory that was there 4.3 s). On a GPU the framework's allocator keeps it.

    Attributes:
        keeps: Whether memory stays between calls.
        known: The coders that were read, by what decides.
        idle: The memory that nobody uses now.
        clips: How many clips are on their way.
        lock: Guards the last two.
        attributes: By module of a coder: the attributes of its modules that hold states.
        recording: Held while a coder's own code is recorded.
    """

    keeps: bool = True
    known: dict[tuple[Any, ...], Known] = field(default_factory=dict)
    idle: list[Arena] = field(default_factory=list)
    clips: int = 0
    lock: Any = field(default_factory=threading.Lock)
    attributes: dict[nn.Module, tuple[tuple[nn.Module, str], ...]] = field(default_factory=dict)
    recording: Any = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        memory.KEEPERS.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Coders:
        """Return an empty one: schedules know the weights that they were read from."""
        return Coders(self.keeps)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an empty one."""
        return Coders, (self.keeps,)

    def forget(self) -> None:
        """Read every coder anew, and give the memory back."""
        self.known.clear()
        self.release()

    def why_unread(self, module: nn.Module) -> str | None:
        """Return why the calls of a coder so far ran its modules one by one, or None."""
        found = [known for key, known in tuple(self.known.items()) if key[0] == id(module)]
        if not found or any(known.schedule is not None for known in found):
            return None
        return f"its modules run one by one: {found[-1].why}"

    @property
    def most(self) -> int:
        """How many bytes may be kept."""
        return machine_memory.total() // 8 if self.keeps else 0

    @property
    def kept(self) -> int:
        """How many bytes are kept and not in use."""
        return sum(map(len, self.idle))

    def release(self) -> None:
        """Give the memory back that nobody uses now."""
        with self.lock:
            for arena in self.idle:
                arena.release()

    @contextmanager
    def clip(self) -> Iterator[None]:
        """Keep all memory from one chunk to the next, until the last of the clips that run now is done."""
        with self.lock:
            self.clips += 1
        try:
            yield
        finally:
            with self.lock:
                self.clips -= 1
                self._let_go()

    @contextmanager
    def arena(self, device: torch.device) -> Iterator[Arena]:
        """Lend memory that nobody else uses meanwhile."""
        with self.lock:
            place = device, stream_of(device)
            at = next((i for i, a in enumerate(self.idle) if (a.device, a.stream) == place), None)
            arena = Arena(device) if at is None else self.idle.pop(at)
        try:
            yield arena
        finally:
            with self.lock:
                self.idle.append(arena)
                self._let_go()

    def _let_go(self) -> None:
        """Give back what is not to be kept, the largest first."""
        if self.clips:
            return
        most = self.most
        for arena in sorted(self.idle, key=len):
            arena.hide()
            if arena.device.type == "cpu" and len(arena) <= most:
                most -= len(arena)
            else:
                arena.release()


def find(module: nn.Module, link: Any, x: Tensor, read: Read, **how: Any) -> Schedule | None:
    """Return the schedule of a coder for an input like this one; None: its modules run one by one.

    The arguments are those of `look_up`.
    """
    return usable(look_up(module, link, x, read, **how), x)


def usable(known: Known | None, x: Tensor) -> Schedule | None:
    """Return a schedule unless it would lose a gradient."""
    if known is None or known.schedule is None:
        return None
    if torch.is_grad_enabled():
        if x.requires_grad or any(p.requires_grad for p in known.watch.parameters):
            return None
    return known.schedule


def look_up(
    module: nn.Module,
    link: Any,
    x: Tensor,
    read: Read,
    *,
    first: bool,
    memory_format: Callable[[], torch.memory_format] = lambda: torch.channels_last_3d,
    others: tuple[Any, ...] = (),
    aside: Callable[[], Sequence[tuple[nn.Module, str]]] = tuple,
    look: Callable[[nn.Module], Any] | None = None,
) -> Known | None:
    """Return what is known of a coder for an input like this one; None: somebody looks on.

    Args:
        module: The coder.
        link: Of its swap.
        x: The input.
        read: Reads the coder.
        first: Whether this is a first chunk, without states.
        memory_format: Returns that of the activations; default: channels last.
        others: What else decides.
        aside: Returns, when it was read, the attributes of its modules that hold states.
        look: `look(module).holds()` tells whether there is still what else it was read from.
    """
    if x.dim() != 5 or _is_looked_on(x) or why_globally_hooked() is not None:
        return None
    if resolve_precision(link.precision) == "exact":
        return None
    settings = (BACKEND.current(), PRECISION.current(), env.state(), dry_run.current() is None)
    key = (id(module), x.shape, x.dtype, x.device, first, settings, *others)
    known = link.coders.known.get(key)
    if known is None or not known.watch.holds() or not (known.looked is None or known.looked.holds()):
        looked = None if look is None else look(module)
        with dry_run.aside():
            known = _read(module, link, x, read, Steps(memory_format(), first), aside)
        known.looked = looked
        while len(link.coders.known) >= _MOST:
            link.coders.known.pop(next(iter(link.coders.known)), None)  # the oldest
        link.coders.known[key] = known
    elif known.schedule is not None and not known.schedule.lasts:
        with dry_run.aside():  # packed weights may have got room meanwhile
            known.schedule = _build(known.steps, link, x)
    return known


def run(
    schedule: Schedule,
    link: Any,
    x: Tensor,
    old: list[Any],
    *,
    keeps: bool = True,
    extra: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Any]] | None:
    """Run a schedule; None: a module on the way made something unforeseen, and all of them run one by one.

    `extra` are the inputs behind the first one.
    """
    try:
        with link.coders.arena(x.device) as arena:
            return schedule.run(arena, (x, *extra), old, keeps=keeps)
    except Mismatch:
        for known in tuple(link.coders.known.values()):
            if known.schedule is schedule:
                known.schedule = None
        return None


def _read(
    module: nn.Module,
    link: Any,
    x: Tensor,
    read: Read,
    steps: Steps,
    aside: Callable[[], Sequence[tuple[nn.Module, str]]],
) -> Known:
    watch = Watch(module)
    try:
        more = read(steps, steps.take(x))
        return Known(Watch(module, aside()), _build(steps, link, x), steps, more)
    except Unreadable as error:
        return Known(watch, None, why=str(error))


def _build(steps: Steps, link: Any, x: Tensor) -> Schedule:
    precision, low = resolve_precision(link.precision), link.memory == "low"
    return build(steps, x.device, backend=link.backend, precision=precision, low=low)


def _is_looked_on(x: Tensor) -> bool:
    """Whether a compiler, a transform or autocast has to see each module's own calls."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return True
    return (
        not is_plain_tensor(x)
        or x.is_neg()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def states_fit(schedule: Schedule, old: Sequence[Any]) -> bool:
    """Whether states are those that a schedule reads; diffusers also takes others."""
    grad = torch.is_grad_enabled()
    for expected, state in zip(schedule.states, old, strict=True):
        if grad and any(t.requires_grad for t in tensors_in(state)):
            return False
        if expected is None:
            continue
        if not isinstance(state, Tensor) or not is_plain_tensor(state) or state.is_neg():
            return False
        if (state.shape, state.dtype, state.device) != expected:
            return False
    return True


def tensors_in(cache: Any) -> Iterator[Tensor]:
    """Give the tensors of a nested cache."""
    if isinstance(cache, Tensor):
        yield cache
    elif isinstance(cache, (list, tuple, dict)):
        for part in cache.values() if isinstance(cache, dict) else cache:
            yield from tensors_in(part)
