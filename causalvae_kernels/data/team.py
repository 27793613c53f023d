"""Processes that share work: one queue in a store, whether there is one process or `torchrun` started many.

Nothing but a few counters goes from process to process, so that the store of the process group is enough: no
collective can hang because a process died, and CPUs and GPUs need no backend of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..core.errors import InvalidInput

_LONG = timedelta(days=365)


@dataclass(frozen=True)
class Team:
    """The processes of one run.

    Attributes:
        store: `torch.distributed`'s key-value store, which all of them reach.
        rank: Of this process.
        size: How many there are.
        local_rank: Of this process on its machine: which GPU is its own.
    """

    store: Any
    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def publish(self, name: str, text: str) -> None:
        """Let every process read a text."""
        self.store.set(name, text)

    def read(self, name: str) -> str:
        """Return a text, and wait for it where nobody has published it yet."""
        self.store.wait([name], _LONG)
        return self.store.get(name).decode()

    def read_with(self, name: str, tick: Callable[[], None], seconds: float = 0.5) -> str:
        """As `read`, and call `tick` from time to time while waiting."""
        while not self.store.check([name]):
            tick()
            time.sleep(seconds)
        return self.store.get(name).decode()

    def add(self, name: str, amount: int = 1) -> int:
        """Add to a counter of the whole run, and return its value."""
        return self.store.add(name, amount)

    def tasks(self, total: int) -> Iterator[int]:
        """Yield numbers below `total`, each to one process only, until there are none left."""
        while (task := self.add("next") - 1) < total:
            yield task


def join_team() -> Team:
    """Return the processes that `torchrun` started together with this one, or this one alone.

    Raises:
        InvalidInput: The environment speaks of more processes, and this torch cannot reach them.
    """
    if "RANK" not in os.environ:
        return Team(_Counters())
    import torch.distributed as dist

    if not dist.is_available():
        raise InvalidInput(
            f"RANK is {os.environ['RANK']}, but this torch is built without torch.distributed; expected "
            "one process, without RANK in the environment"
        )
    store, rank, size = next(dist.rendezvous("env://"))
    return Team(store, rank, size, int(os.environ.get("LOCAL_RANK", rank)))


class _Counters:
    """The store of one process."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def set(self, name: str, text: str) -> None:
        self._values[name] = text.encode()

    def get(self, name: str) -> bytes:
        return self._values[name]

    def wait(self, names: list[str], timeout: timedelta) -> None:
        pass

    def read_with(self, name: str, tick: Callable[[], None], seconds: float = 0.5) -> str:
        """As `read`, and call `tick` from time to time while waiting."""
        while not self.store.check([name]):
            tick()
            time.sleep(seconds)
        return self.store.get(name).decode()

    def check(self, names: list[str]) -> bool:
        return all(name in self._values for name in names)

    def add(self, name: str, amount: int) -> int:
        self._values[name] = self._values.get(name, 0) + amount
        return self._values[name]
