"""Packed weights: kept between calls under a budget, and never stale.

A native kernel wants weights in another order, or transformed; doing that on every call would cost more
than the call. What identifies weights is checked on every call: `param.data.copy_()`, an EMA update or
`.to(dtype)` leave identity and version counter as they were, so that a checksum over a few hundred
elements is compared as well.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from . import env, native
from .errors import InvalidInput

Key = tuple[object, ...]

_budget: ContextVar[int | None] = ContextVar("causalvae_kernels_packed_budget", default=None)
_packs: dict[Key, _Pack] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class _Pack:
    storage: StorageWeakRef  # of the weights; while it lives, no other storage has its address
    version: int | None
    checksum: int
    packed: Tensor

    def holds_for(self, weight: Tensor) -> bool:
        return (
            not self.storage.expired()
            and self.version == _version(weight)
            and self.checksum == _checksum(weight)
        )


def check_packed_budget(op: str, size: object) -> None:
    """Require a number of bytes.

    Raises:
        InvalidInput: It is something else, or negative.
    """
    if type(size) is not int or size < 0:
        raise InvalidInput(f"{op}: got a packed budget of {size!r}, expected a number of bytes, 0 or more")


@contextmanager
def use_packed_budget(size: int) -> Iterator[None]:
    """Set how much memory packed weights may take together, for calls inside the context.

    Args:
        size: Bytes. With 0 nothing new is kept: weights are packed on every call where that pays. What is
            kept already stays until `release_packed_weights`.

    Raises:
        InvalidInput: `size` is not a number of bytes.
    """
    check_packed_budget("use_packed_budget", size)
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
    return _physical_memory() // 4 if given is None else int(given) * 2**20


def packed_size() -> int:
    """Return how many bytes packed weights take now."""
    with _lock:
        _sweep()
        return sum(pack.packed.nbytes for pack in _packs.values())


def release_packed_weights(weights: Iterable[Tensor] | None = None) -> None:
    """Free what is packed of these weights, or everything; the next call packs again."""
    with _lock:
        addresses = None if weights is None else {weight.data_ptr() for weight in weights}
        for key in [k for k in _packs if addresses is None or k[0] in addresses]:
            del _packs[key]
        _sweep()


def find_packed(weight: Tensor, kind: object, size: int, pack: Callable[[], Tensor]) -> Tensor | None:
    """Return the packed weights: those kept, or new ones, which are kept if the budget has room.

    Args:
        weight: On the CPU.
        kind: What else decides how they are packed: the algorithm, the instruction set.
        size: Bytes of the packed weights.
        pack: Makes them.

    Returns:
        The packed weights, or None where the budget has no room for them.
    """
    key = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, weight.device, kind)
    kept = _packs.get(key)
    if kept is not None and kept.holds_for(weight):
        return kept.packed
    with _lock:
        _packs.pop(key, None)
        _sweep()
        if sum(p.packed.nbytes for p in _packs.values()) + size > packed_budget():
            return None
        new = _Pack(StorageWeakRef(weight.untyped_storage()), _version(weight), _checksum(weight), pack())
        _packs[key] = new
    # A cast made for one call, say, frees its packed weights as it goes.
    weakref.finalize(weight._base if weight._is_view() else weight, _drop, key, new)
    return new.packed


def _drop(key: Key, pack: _Pack) -> None:
    if _packs.get(key) is pack:
        _packs.pop(key, None)


def _sweep() -> None:
    for key in [k for k, pack in _packs.items() if pack.storage.expired()]:
        del _packs[key]


def _version(weight: Tensor) -> int | None:
    return None if weight.is_inference() else weight._version


def _checksum(weight: Tensor) -> int:
    return native.cpu_module().fingerprint(native.describe(weight), weight.element_size())


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30  # not POSIX
