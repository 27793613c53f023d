"""Argument checks shared by the ops; every message says what was given and what is expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InvalidInput

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


# What 64-bit sizes can count.
_MOST_BYTES = 2**63 - 1


def check_tensor(op: str, name: str, x: object, shape: str) -> None:
    """Require a dense tensor; `shape` names the dimensions."""
    if not isinstance(x, Tensor):
        raise InvalidInput(f"{op}: {name} is a {type(x).__name__}, expected a tensor of shape {shape}")
    if x.layout is not torch.strided or x.is_nested:
        kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        raise InvalidInput(f"{op}: {name} is a {kind} tensor, expected a dense one; convert it first")


def check_video(op: str, name: str, x: object, *, empty_batch: bool = False) -> None:
    """Require a (B, C, T, H, W) tensor without empty dimensions; B may be 0 with `empty_batch`."""
    check_tensor(op, name, x, "(B, C, T, H, W)")
    if x.dim() != 5:
        raise InvalidInput(
            f"{op}: {name} has shape {tuple(x.shape)}, expected five dimensions (B, C, T, H, W)"
        )
    if 0 in x.shape[empty_batch:]:
        raise InvalidInput(
            f"{op}: {name} has shape {tuple(x.shape)}, expected at least one of everything in (B, C, T, H, W)"
        )


def check_operands(
    op: str,
    x: object,
    weight: object,
    bias: object,
    initial_state: object = None,
    residual: object = None,
) -> None:
    """Require tensors among the arguments of a convolution, before anything is asked of them."""
    check_tensor(op, "x", x, "(B, C, T, H, W)")
    check_tensor(op, "weight", weight, "(Cout, Cin, kT, kH, kW)")
    for name, tensor, shape in (
        ("bias", bias, "(Cout,)"),
        ("initial_state", initial_state, "(B, C, frames, H, W)"),
        ("residual", residual, "(B, Cout, T', H', W')"),
    ):
        if tensor is not None:
            check_tensor(op, name, tensor, shape)


def check_shape(op: str, name: str, x: object, expected: Sequence[int], meaning: str) -> None:
    """Require a tensor of exactly this shape; `meaning` names the dimensions."""
    check_tensor(op, name, x, meaning)
    if tuple(x.shape) != tuple(expected):
        raise InvalidInput(f"{op}: {name} has shape {tuple(x.shape)}, expected {tuple(expected)} = {meaning}")


def check_like(op: str, name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Require the dtype and the device of another argument."""
    if x.dtype != other.dtype:
        raise InvalidInput(
            f"{op}: {name} is {x.dtype} and {other_name} is {other.dtype}, expected one dtype; "
            f"convert one of them with .to(...)"
        )
    if x.device != other.device:
        raise InvalidInput(
            f"{op}: {name} is on {x.device} and {other_name} on {other.device}, expected one device"
        )


def check_float(op: str, name: str, x: Tensor) -> None:
    """Require one of the dtypes that the arithmetic ops know."""
    if x.dtype not in FLOAT_DTYPES:
        raise InvalidInput(f"{op}: {name} is {x.dtype}, expected float32, bfloat16, float16 or float64")


def check_choice(op: str, name: str, value: object, choices: Sequence[str]) -> None:
    """Require one of a few words."""
    if value not in choices:
        raise InvalidInput(f"{op}: {name} is {value!r}, expected one of {', '.join(map(repr, choices))}")


def int_tuple(op: str, name: str, value: object, length: int) -> tuple[int, ...]:
    """Turn an int, or a sequence of `length` ints, into a tuple."""
    if type(value) is int:
        return (value,) * length
    items = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(items) != length or any(type(i) is not int for i in items):
        raise InvalidInput(f"{op}: {name} is {value!r}, expected an int or {length} ints")
    return items


def check_countable(op: str, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Require that 64-bit sizes can count the bytes of a tensor that is about to be made."""
    size = math.prod(shape) * dtype.itemsize
    if size > _MOST_BYTES:
        raise InvalidInput(
            f"{op}: {name} of shape {tuple(shape)} would take {size} bytes, expected at most {_MOST_BYTES}"
        )


def check_bytes(op: str, name: str, size: object) -> None:
    """Require a number of bytes: an int of 0 or more."""
    if type(size) is not int or size < 0:
        raise InvalidInput(f"{op}: {name} is {size!r}, expected a number of bytes, 0 or more")


def check_count(op: str, name: str, value: object, most: int | None = None) -> int:
    """Return a number of things as an int.

    Raises:
        InvalidInput: It is no integer, below 1, or above `most`.
    """
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or (most is not None and count > most):
        expected = "a positive int" if most is None else f"1 to {most}"
        raise InvalidInput(f"{op}: {name} is {value!r}, expected {expected}")
    return count
