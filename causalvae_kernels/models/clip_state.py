"""A clip begins without a state and leaves none behind, whatever ended the one before.

What a model keeps between the chunks of one sample is either in attributes of the model, which then are those
of a clone for the time of that sample, or on its modules, where it is cleared before and after.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Carried(list[Any]):
    """A list that hooks hand on as it is.

    accelerate and diffusers copy lists on the way to a hooked module, and what that module writes into a
    copy is lost; what looks as if it could be moved to another device, they ask to do so by itself.
    """

    def to(self, *_: Any, **__: Any) -> Carried:
        """Return the list: its tensors are moved by those who read them."""
        return self


class LastRead(Carried):
    """States that the last chunk of a clip reads: nobody asks for new ones."""


@contextmanager
def on_a_clone(model: nn.Module) -> Iterator[nn.Module]:
    """Give a shallow clone of a model: the same modules, while attributes that are set stay on the clone.

    So calls from several threads see no state of each other's, and a call that fails takes its state along.
    """
    clone = object.__new__(_carrying(type(model)))
    clone.__dict__.update(model.__dict__)
    try:
        yield clone
    finally:
        clone.__dict__.clear()  # a traceback may hold the clone


@contextmanager
def cleared(model: nn.Module) -> Iterator[nn.Module]:
    """Give the model itself, the `prev_features` of its modules cleared before and after."""
    _clear(model)
    try:
        yield model
    finally:
        _clear(model)


def _clear(model: nn.Module) -> None:
    for module in model.modules():
        # Not by asking for the attribute, which is missing where its own method was interrupted.
        if module is not model and hasattr(module, "_clear_conv_cache"):
            module.prev_features = None


@functools.cache
def _carrying(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass for clones, on which every list is `Carried`."""

    def set_attribute(self: nn.Module, name: str, value: Any) -> None:
        cls.__setattr__(self, name, Carried(value) if type(value) is list else value)

    return type(cls.__name__, (cls,), {"__setattr__": set_attribute, "__module__": cls.__module__})
