"""What a Triton kernel reads and writes in the interpreter: every address, checked before it is used.

Compiled kernels have no such check, and a load one element too far seldom fails: it reads what lies behind.
Three faults are found, for the sizes that a test runs: an access outside of the tensors that the kernel was
given, an element that two programs write, and one that a program reads and another one writes. Programs run
in any order on a GPU, so the last two are races.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor


class MemoryFault(AssertionError):
    """A kernel that uses memory that is not its own."""


class _Launch:
    """The elements that one launch may use, and which program used them."""

    def __init__(self, kernel: str, tensors: Iterable[torch.Tensor]) -> None:
        self.kernel = kernel
        own = [_elements(tensor) for tensor in tensors if tensor.numel()]
        self.own = np.unique(np.concatenate(own)) if own else np.empty(0, np.uint64)
        # For each element the program that wrote it and one that read it; a second reader goes into `shared`.
        self.writer, self.reader = (np.full(self.own.size, -1, np.int64) for _ in range(2))
        self.shared = np.zeros(self.own.size, bool)
        self.program = -1

    def use(self, addresses: np.ndarray, mask: np.ndarray, write: bool) -> None:
        used = addresses[np.broadcast_to(mask, addresses.shape)].astype(np.uint64).ravel()
        at = np.searchsorted(self.own, used)
        outside = (at == self.own.size) | (self.own[np.minimum(at, self.own.size - 1)] != used)
        if outside.any():
            self._fail(f"{'writes' if write else 'reads'} {outside.sum()} elements outside of its tensors")
        if (written := (self.writer[at] >= 0) & (self.writer[at] != self.program)).any():
            other = self.writer[at[written][0]]
            self._fail(f"{'writes' if write else 'reads'} what program {other} writes")
        if not write:
            self.shared[at] |= (self.reader[at] >= 0) & (self.reader[at] != self.program)
            self.reader[at] = self.program
            return
        if (read := self.shared[at] | ((self.reader[at] >= 0) & (self.reader[at] != self.program))).any():
            self._fail(f"writes {read.sum()} elements that another program reads")
        self.writer[at] = self.program

    def _fail(self, sentence: str) -> None:
        raise MemoryFault(f"{self.kernel}: program {self.program} {sentence}")


def _elements(tensor: torch.Tensor) -> np.ndarray:
    """Return the address of every element."""
    offsets = np.zeros(1, np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = np.add.outer(offsets, np.arange(size) * stride).ravel()
    return (tensor.data_ptr() + offsets * tensor.element_size()).astype(np.uint64)


def _tensors(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _tensors(argument)
        elif isinstance(argument, TensorDescriptor):
            yield argument.base
        elif isinstance(argument, torch.Tensor):
            yield argument


@contextmanager
def checked() -> Iterator[None]:
    """Check the kernels that are interpreted meanwhile; `MemoryFault` is raised, or stands in what is.

    Raises:
        MemoryFault: A kernel used memory that is not its own.
    """
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    originals = {
        (owner, name): getattr(owner, name)
        for owner, name in (
            (executor, "__call__"),
            (builder, "set_grid_idx"),
            (builder, "create_masked_load"),
            (builder, "create_masked_store"),
        )
    }
    call, set_program, load, store = originals.values()
    launch: _Launch | None = None

    def checked_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal launch
        launch = _Launch(self.fn.__name__, _tensors([*args, *kwargs.values()]))
        return call(self, *args, **kwargs)

    def checked_program(self: Any, *index: int) -> None:
        launch.program += 1
        set_program(self, *index)

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        launch.use(pointers.data, mask.data, write=False)
        return load(self, pointers, mask, *rest, **options)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launch.use(pointers.data, mask.data, write=True)
        return store(self, pointers, value, mask, *rest)

    replacements: tuple[Callable, ...] = (checked_call, checked_program, checked_load, checked_store)
    try:
        for (owner, name), replacement in zip(originals, replacements, strict=True):
            setattr(owner, name, replacement)
        yield
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)
