"""Packed weights: kept between calls within a budget, and checked against the weights on every call.

A native kernel needs weights in another order, or transformed; doing that on every call would cost more than
the call. Storage and version counter are compared on every call. `param.data.copy_()`, an EMA update or
`.to(dtype)` change neither, so a checksum over a sample of 509 elements is compared as well. A write that
leaves the version counter and all sampled elements unchanged is not detected.

If the budget is full, new weights replace those with a smaller gain per byte, that is, fewer pixels, or,
after repeated requests, those that are idle: a decoder's replace its encoder's after a call or two. Weights
in equal use on as many pixels stay, because replacing them in turn would pack everything on every call.
Entries that were evicted back off exponentially, so that two parts of a model that run in turns settle.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef

from . import env, machine_memory, native
from .checks import check_bytes
from .dry_run import address, current, is_plain_tensor

Key = tuple[object, ...]
_budget: ContextVar[int | None] = ContextVar("causalvae_kernels_packed_budget", default=None)
_packs: dict[Key, _Pack] = {}
_waits: dict[Key, _Wait] = {}
_MORE_PIXELS = 2  # times as many as those of a pack that gives way
# Weights wait for so many lookups per pack before others are idle: a model looks a weight up several times.
_PATIENCE = 2
# Guards every change of `_packs` and `_waits`. Finalizers run at any allocation, also in a loop under it.
# Ours change neither: they free the memory of a pack, and `_sweep` removes its entry. A user's may release
# weights, so loops run over copies: `dict.copy()` is atomic, `list(d.items())` is not.
_lock = threading.RLock()


@dataclass
class _Pack:
    storage: StorageWeakRef  # of the weights; while it lives, no other storage has its address
    version: int | None
    checksum: int
    packed: Tensor | None  # None once the weights are gone
    pixels: int  # of the largest call that looked it up
    used: int  # when it was last looked up
    finalizer: weakref.finalize | None = None  # frees the memory with the weights

    def packed_for(self, weight: Tensor) -> Tensor | None:
        """Return what is packed if it holds for the weights as they are now."""
        packed = self.packed  # read once: a finalizer may free it meanwhile
        if packed is None or self.storage.expired() or self.version != _version(weight):
            return None
        return packed if self.checksum == _checksum(weight) else None

    def size(self) -> int:
        packed = self.packed
        return 0 if packed is None else packed.nbytes

    def free(self) -> None:
        self.packed = None


@dataclass
class _Wait:
    """Weights that were refused for lack of room, or were evicted."""

    storage: StorageWeakRef  # of the weights
    since: int | None = None  # the tick at which they were refused
    gave_way: int = 0  # how often


class _Clock:
    """Counts lookups; those of one weight in a row are one."""

    def __init__(self) -> None:
        self.now = 0
        self._last: Key | None = None

    def tick(self, key: Key) -> int:
        """Return the time of a lookup."""
        if key != self._last:
            self.now, self._last = self.now + 1, key
        return self.now


_clock = _Clock()


@contextmanager
def use_packed_budget(size: int) -> Iterator[None]:
    """Set how much memory packed weights may take together, for calls inside the context.

    Args:
        size: Bytes. With 0 nothing new is kept: weights are packed on every call where that pays. What is
            kept already stays until `release_packed_weights`, or until others take its place.

    Raises:
        InvalidInput: `size` is not a number of bytes.
    """
    check_bytes("use_packed_budget", "size", size)
    token = _budget.set(size)
    try:
        yield
    finally:
        _budget.reset(token)


def packed_budget() -> int:
    """Return how many bytes packed weights may take together.

    Raises:
        InvalidInput: `CAUSALVAE_KERNELS_PACKED_MIB` is no number.
    """
    size = _budget.get()
    if size is not None:
        return size
    given = env.PACKED_MIB.get()
    return machine_memory.total() // 4 if given is None else int(given) * 2**20


def packed_size() -> int:
    """Return the size of all packed weights, in bytes."""
    with _lock:
        _sweep()
        return sum(pack.size() for pack in _registry().copy().values())


def release_packed_weights(weights: Iterable[Tensor] | None = None) -> None:
    """Free the packed form of these weights, or of all; the next call packs them again."""
    if not _registry() and not _waiting():
        return
    addresses = None
    if weights is not None:
        addresses = {address(w) for w in weights if is_plain_tensor(w) and w.device.type == "cpu"}
    with _lock:
        for key in {*_registry(), *_waiting()}:
            if addresses is None or key[0] in addresses:
                _forget(key)
                _waiting().pop(key, None)
        _sweep()


def has_room(weight: Tensor, kind: object, size: int, pixels: int) -> bool:
    """Tell whether packed weights are kept already, or would be; the arguments are those of `find_packed`."""
    key = _key(weight, kind)
    kept = _registry().get(key)
    if kept is not None and kept.packed is not None:
        return True
    with _lock:
        return _room(key, weight, size, pixels) is not None


def recall(key: Key, weight: Tensor, checksum: int, pixels: int) -> Tensor | None:
    """Return packed weights that are kept and hold for the weights as they are now, or None.

    Args:
        key: The address, and what `layout_key` returned.
        weight: The weights.
        checksum: Theirs, as the native module's `fingerprint` gives it.
        pixels: As in `find_packed`.
    """
    kept = _packs.get(key)
    if kept is None:
        return None
    packed = kept.packed  # read once: a finalizer may free it meanwhile
    # As `StorageWeakRef.expired` asks, without two more calls.
    if packed is None or kept.checksum != checksum or UntypedStorage._expired(kept.storage.cdata):
        return None
    if kept.version != (None if weight.is_inference() else weight._version):
        return None
    if pixels > kept.pixels:
        kept.pixels = pixels
    kept.used = _clock.tick(key)
    return packed


def find_packed(
    weight: Tensor, kind: object, size: int, pixels: int, pack: Callable[[], Tensor]
) -> Tensor | None:
    """Return the packed weights: those kept, or new ones, which are kept if the budget has room.

    Args:
        weight: On the CPU.
        kind: What else decides how they are packed: the algorithm, the instruction set.
        size: Bytes of the packed weights.
        pixels: On how many, frames counted, the call uses them; the time that they save grows with it.
        pack: Makes them.

    Returns:
        The packed weights, or None where the budget has no room for them.
    """
    key = _key(weight, kind)
    kept = _registry().get(key)
    packed = None if kept is None else kept.packed_for(weight)
    if packed is not None:
        kept.pixels, kept.used = max(kept.pixels, pixels), _clock.tick(key)
        return packed
    with _lock:
        kept = _registry().get(key)  # another thread may have packed them meanwhile
        packed = None if kept is None else kept.packed_for(weight)
        if packed is not None:
            return packed
        _forget(key)
        making_room = _room(key, weight, size, pixels)
        if making_room is None:
            return None
        for other in making_room:
            _give_way(other)
        if key in _waiting():
            _waiting()[key].since = None
        run = current()
        packed = pack() if run is None else run.uncounted(pack)
        identity = StorageWeakRef(weight.untyped_storage()), _version(weight), _checksum(weight)
        new = _Pack(*identity, packed, pixels, _clock.tick(key))
        if not weight.is_inference():  # whose views do not tell what they are views of
            owner = weight._base if weight._is_view() else weight
            new.finalizer = weakref.finalize(owner, new.free)
            new.finalizer.atexit = False
        _registry()[key] = new
    return packed


def _registry() -> dict[Key, _Pack]:
    """Return what is kept: in a dry run what that run would keep."""
    run = current()
    return _packs if run is None else run.packs


def _waiting() -> dict[Key, _Wait]:
    run = current()
    return _waits if run is None else run.waits


def _key(weight: Tensor, kind: object) -> Key:
    return (address(weight), *layout_key(weight, kind))


def layout_key(weight: Tensor, kind: object) -> Key:
    """Return what follows the address of weights in the key that `recall` takes."""
    return (weight.shape, weight.stride(), weight.dtype, weight.device, kind)


def _room(key: Key, weight: Tensor, size: int, pixels: int) -> list[Key] | None:
    """Return what must go for so many bytes more: what gains less or lies idle; None if it is too little."""
    kept, budget = packed_size(), packed_budget()
    if kept + size <= budget:
        return []
    if kept > budget:  # another model's budget let them in
        return None
    packs, now = _registry(), _clock.tick(key)
    wait = _wait_of(key, StorageWeakRef(weight.untyped_storage()))
    since = now if wait.since is None else wait.since
    waited = now - since >= _PATIENCE * len(packs) * 2**wait.gave_way
    excess, going = kept + size - budget, []
    may_go = [
        (other, pack)
        for other, pack in packs.copy().items()
        if (waited and pack.used < since)
        or (_MORE_PIXELS * pack.pixels <= pixels and (waited or not wait.gave_way))
    ]
    for other, pack in sorted(may_go, key=lambda item: (item[1].used >= since, item[1].pixels)):
        going.append(other)
        excess -= pack.size()
        if excess <= 0:
            return going
    wait.since = now if waited else since
    return None


def _wait_of(key: Key, storage: StorageWeakRef) -> _Wait:
    wait = _waiting().get(key)
    if wait is None or wait.storage.expired():
        wait = _waiting()[key] = _Wait(storage)
    return wait


def _give_way(key: Key) -> None:
    """Free a pack for the sake of another."""
    pack = _registry().get(key)
    if pack is not None:
        _forget(key)
        _wait_of(key, pack.storage).gave_way += 1


def _forget(key: Key) -> None:
    pack = _registry().pop(key, None)
    if pack is not None and pack.finalizer is not None:
        pack.finalizer.detach()


def _sweep() -> None:
    """Remove what belongs to weights that are gone."""
    for key in [k for k, pack in _registry().copy().items() if pack.packed is None or pack.storage.expired()]:
        _forget(key)
    for key in [k for k, wait in _waiting().copy().items() if wait.storage.expired()]:
        _waiting().pop(key, None)


def _version(weight: Tensor) -> int | None:
    return None if weight.is_inference() else weight._version


def _checksum(weight: Tensor) -> int:
    return native.cpu_module().fingerprint(native.describe(weight), weight.element_size())
