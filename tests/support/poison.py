"""NaN in memory that must not be read: fresh tensors, arenas before a run, all that malloc gives."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from causalvae_kernels.coder import Arena

_SOURCE = Path(__file__).with_name("poisoned_malloc.c")


@contextmanager
def fresh_memory(poisoned: bool) -> Iterator[None]:
    """Fill what torch allocates and does not write, and arenas, with NaN; or nothing.

    The framework's algorithms are the deterministic ones in both cases, so that bits can be compared.
    """
    settings, reserve = torch.utils.deterministic, Arena.reserve
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory

    def reserve_and_overwrite(arena: Arena, size: int) -> None:
        reserve(arena, size)
        if len(arena):
            overwrite(arena.view(0, (len(arena),), (1,), torch.uint8))

    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = poisoned
    try:
        with patch.object(Arena, "reserve", reserve_and_overwrite if poisoned else reserve):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def overwrite(tensor: Tensor) -> None:
    """Fill the whole storage of a tensor with bytes that are NaN in every floating-point type."""
    torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).fill_(0xFF)


def poisoned_malloc(folder: Path, compiler: str) -> Path:
    """Build the library that does the same to all that a process allocates; preload it."""
    library = folder / "poisoned_malloc.so"
    command = [*shlex.split(compiler), "-O2", "-shared", "-fPIC", str(_SOURCE), "-o", str(library)]
    subprocess.run(command, check=True)
    return library
