"""Bytes that a model moves, operator by operator, counted without computing anything.

An operator of the framework reads its inputs and writes its outputs, each once; a view moves nothing; what is
written in place is read as well, unless it is only a destination. A kernel of ours moves what its backend
declares (`core.traffic`), every further pass over its input included. So both sides of a comparison are
counted by one rule, but for passes inside operators of the framework, which nobody declares: its group norm
reads its input twice and is counted as reading it once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.backend import Backend
from ..core.op import Call
from ..core.traffic import Pass, bytes_of
from .hollow_run import HollowRun, Operator, arguments_of

_CONVOLUTIONS = ("convolution", "mkldnn_convolution", "_convolution", "convolution_overrideable")
# Filled or overwritten, whatever was there.
_OVERWRITE = ("copy_", "fill_", "zero_", "normal_", "uniform_")
# They move nothing: what writes first takes the page faults.
ALLOCATE = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")
_NAMES = {
    "add_": "add",
    "mul_": "mul",
    "silu_": "silu",
    "clone": "copy",
    "copy_": "copy",
    "_to_copy": "copy",
    "addmm": "matmul",
    "mm": "matmul",
    "bmm": "matmul",
    "baddbmm": "matmul",
    "upsample_nearest3d": "nearest upsampling",
    "upsample_nearest2d": "nearest upsampling",
    "constant_pad_nd": "pad",
}


@dataclass
class Moved:
    """What one kind of operator moved.

    Attributes:
        convolution: Whether it is a convolution of more than one tap.
        calls: How often it ran.
        read: Bytes.
        written: Bytes.
    """

    convolution: bool
    calls: int = 0
    read: int = 0
    written: int = 0

    @property
    def bytes(self) -> int:
        """Both."""
        return self.read + self.written


@dataclass
class Traffic:
    """What was moved, by operator.

    Attributes:
        moved: By name of the operator.
    """

    moved: dict[str, Moved] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all operators."""
        return sum(m.bytes for m in self.moved.values())

    @property
    def besides_convolutions(self) -> int:
        """Of all but convolutions of more than one tap; those of one are steps between activations here."""
        return sum(m.bytes for m in self.moved.values() if not m.convolution)

    def add(self, step: Pass) -> None:
        """Count a pass."""
        found = self.moved.setdefault(step.name, Moved(step.convolution))
        found.calls += 1
        found.read += step.read
        found.written += step.written

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, the largest first."""
        rows = sorted(self.moved.items(), key=lambda item: -item[1].bytes)
        return {
            "bytes": self.bytes,
            "bytes_besides_convolutions": self.besides_convolutions,
            "operators": {
                name: {
                    "calls": m.calls,
                    "read": m.read,
                    "written": m.written,
                    "convolution": m.convolution,
                }
                for name, m in rows
            },
        }


def count_traffic(fn: Callable[[], object]) -> Traffic:
    """Return what a call would move; nothing is computed (`HollowRun`), so that it may be of any size.

    Args:
        fn: The call; its tensors need not hold anything, and are not written.
    """
    traffic = Traffic()

    def see(func: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        step = _pass_of(func, args, kwargs, result)
        if step is not None:
            traffic.add(step)

    def see_kernel(backend: Backend, call: Call) -> None:
        for step in backend.moves(call.args, call.out):
            traffic.add(step)

    with torch.no_grad(), HollowRun(see, see_kernel):
        fn()
    return traffic


def _pass_of(func: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Pass | None:
    name = func._schema.name.partition("::")[2]
    if name in ALLOCATE:
        return None
    read, written, mutates = 0, 0, False
    for schema, value, is_written in arguments_of(func, args, kwargs):
        size = bytes_of(*_tensors(value))
        if is_written:
            mutates, written = True, written + size
        if not is_written or not (schema.kwarg_only or name in _OVERWRITE):
            read += size
    if not mutates:
        written = bytes_of(*_tensors(result))
    if not read + written:
        return None
    if name in _CONVOLUTIONS:
        taps = tuple(args[1].shape[2:])
        many = any(k > 1 for k in taps)
        return Pass(f"convolution {'x'.join(map(str, taps))}", read, written, many)
    return Pass(_NAMES.get(name, name), read, written)


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (list, tuple)):
        return [v for v in value if isinstance(v, Tensor)]
    return ()
