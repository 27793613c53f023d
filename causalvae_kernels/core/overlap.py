"""Whether tensors share memory, decided element by element; what ops that write into given memory refuse.

Tensors of one storage often interleave without sharing an element: slices of channels in channels last, every
other frame. So ranges of addresses only sort out the common case. Behind it a shared byte is a solution of a
linear equation, sum of stride * index = distance with bounded indices, that is searched for exactly.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from .dry_run import address, current, is_plain_tensor
from .errors import InvalidInput

Layout = tuple[tuple[int, ...], tuple[int, ...], int]  # sizes, strides in elements, bytes of an element

# Strided layouts of practice take up to a few hundred steps; beyond that sharing is assumed.
_MOST_STEPS = 10_000


def check_destination(
    op: str,
    name: str,
    out: Tensor,
    reads: Mapping[str, Tensor | None],
    may_be_out: Collection[str] = (),
    instead: str = "a tensor of its own",
) -> None:
    """Require that writing `out` changes nothing that is read, and that each of its elements is one place.

    Tensors without an address pass: while a compiler traces, what is read is independent of what is written.

    Args:
        op: Name of the op, for the message.
        name: What `out` is called.
        out: Is written.
        reads: Is read, by name.
        may_be_out: Names of those that may be `out` itself, element for element.
        instead: What to write into, for the message.

    Raises:
        InvalidInput: An element of `out` is another one of its elements, or is read.
    """
    address_of = _addresses()
    first = address_of(out)
    if first is None:
        return
    layout = _layout(out)
    if overlaps_itself(*layout[:2]):
        raise InvalidInput(
            f"{op}: {name} has shape {tuple(out.shape)} and strides {out.stride()}, so that elements share "
            f"memory, expected a place for each; write into {instead}"
        )
    end = first + _span(layout)
    for other, tensor in reads.items():
        begin = address_of(tensor)
        if begin is None or begin >= end or not _share(first, layout, begin, _layout(tensor)):
            continue
        if other in may_be_out and is_same_memory(out, tensor):
            continue
        exactly = f", or that {other} is {name} itself, element for element" if other in may_be_out else ""
        raise InvalidInput(
            f"{op}: {name} shares memory with {other}, which is read while it is written, expected other "
            f"memory{exactly}; write into {instead}"
        )


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors have a byte in common; no for those without an address."""
    first, second = map(_addresses(), (a, b))
    return first is not None and second is not None and _share(first, _layout(a), second, _layout(b))


def is_same_memory(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are the same elements of memory in the same order."""
    if a is b:
        return True
    first, second = map(_addresses(), (a, b))
    return (
        first is not None
        and first == second
        and (a.dtype, a.shape) == (b.dtype, b.shape)
        and all(s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True) if n > 1)
    )


@functools.lru_cache(maxsize=4096)
def overlaps_itself(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Tell whether two elements of a tensor have one address."""
    if 0 in shape:
        return False
    steps = sorted((s, n - 1) for n, s in zip(shape, stride, strict=True) if n > 1)
    reach, nested = 0, True
    for step, most in steps:
        nested = nested and step > reach
        reach += step * most
    if nested:
        return False
    # Two elements first differ in one dimension, there by 1 at least, and behind it by anything.
    for place, (step, most) in enumerate(steps):
        later = steps[place + 1 :]
        total = sum(s * m for s, m in later) - step
        if _solvable(total, [(step, most - 1), *((s, 2 * m) for s, m in later)]):
            return True
    return False


def _addresses() -> Callable[[object], int | None]:
    """Return what gives the address of a tensor, or None for what has none."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return lambda x: None
    if current() is not None:
        return lambda x: address(x) if is_plain_tensor(x) else None
    return _data_ptr


def _data_ptr(x: object) -> int | None:
    return x.data_ptr() if type(x) in (Tensor, torch.nn.Parameter) and not x.is_meta else None


def _share(at_a: int, a: Layout, at_b: int, b: Layout) -> bool:
    if at_a > at_b:
        at_a, a, at_b, b = at_b, b, at_a, a
    return at_b - at_a < _span(a) and _meet(at_b - at_a, a, b)


def _layout(x: Tensor) -> Layout:
    return tuple(x.shape), x.stride(), x.element_size()


@functools.lru_cache(maxsize=4096)
def _span(layout: Layout) -> int:
    """Return how many bytes lie from the first one of a tensor to the last one."""
    shape, stride, size = layout
    return 0 if 0 in shape else (sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1) * size


@functools.lru_cache(maxsize=4096)
def _meet(distance: int, a: Layout, b: Layout) -> bool:
    """Tell whether a tensor and another one that begins `distance` bytes behind it have a byte in common."""
    if not _span(b):
        return False
    # i of `a` meets j of `b` where offset(a, i) = distance + offset(b, j). With j counted from the end of `b`
    # all terms are positive: offset(a, i) + offset(b, j') = distance + span(b) - 1.
    steps: Counter[int] = Counter()
    for shape, stride, size in (a, b):
        steps[1] += size - 1
        for n, s in zip(shape, stride, strict=True):
            steps[s * size] += n - 1
    return _solvable(distance + _span(b) - 1, list(steps.items()))


def _solvable(total: int, steps: Sequence[tuple[int, int]]) -> bool:
    """Tell whether counts exist with sum of step * count = total; `steps` holds (step, greatest count)."""
    left = _MOST_STEPS

    def search(total: int, place: int) -> bool:
        nonlocal left
        left -= 1
        if left < 0 or total == 0:
            return True
        if place == len(steps) or total % divisors[place] or total > reaches[place]:
            return False
        step, most = steps[place]
        least = max(-(-(total - reaches[place + 1]) // step), 0)
        return any(search(total - step * n, place + 1) for n in range(least, min(total // step, most) + 1))

    steps = sorted(((s, m) for s, m in steps if s and m), reverse=True)
    reaches, divisors = [0], [0]
    for step, most in reversed(steps):
        reaches.append(reaches[-1] + step * most)
        divisors.append(math.gcd(divisors[-1], step))
    reaches.reverse()
    divisors.reverse()
    return total >= 0 and search(total, 0)
