"""Everything beside its weights that a module's forward can read, as something to compare on every call.

That is what stands on the instance and on its classes, and which parameters, buffers and children there are.
Values that cannot change are compared by value, lists and tuples item by item, functions by identity.
Anything else may hold a state, and is `Opaque`. Globals and closures are not looked at.
"""

from __future__ import annotations

import enum
import operator
import types
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Fingerprint = tuple[tuple[str, Hashable], ...]

# What nn.Module keeps on every instance, and what hooks and compilers hang on it: no settings of the module.
_INTERNAL = frozenset(nn.Module().__dict__) | {
    *("forward", "_old_forward", "_hf_hook", "_diffusers_hook", "_compiled_call_impl")
}
_TENSORS_AND_CHILDREN = ("_parameters", "_buffers", "_modules")
_ROOTS = frozenset(nn.Module.__mro__)
# Compared by value together with their class: True, 1 and 1.0 are equal.
_NUMBERS = (bool, int, float, complex)
_ATOMS = (str, bytes, type(None), torch.dtype, torch.device, types.FunctionType, types.BuiltinFunctionType)
# Longer lists are no settings, and would cost time on every call.
_MOST_ITEMS = 64
_DEPTH = 4


@dataclass(frozen=True)
class Opaque:
    """A value that may hold anything.

    Attributes:
        type_name: Of the value.
    """

    type_name: str


class Snapshot:
    """What modules looked like when they were read: tells cheaply, on every call, that it is still so."""

    def __init__(self, *modules: nn.Module) -> None:
        """Read the modules."""
        self.fingerprints = tuple([fingerprint(module) for module in modules])
        self._objects, self._filled = _objects(modules), _filled(modules)
        values = [value for module in modules for _, value in _settings(module)]
        self._mutable = [(value, frozen(value)) for value in values if _may_change(value)]

    def holds(self, *modules: nn.Module) -> bool:
        """Whether a fingerprint of these modules would be the same."""
        objects = _objects(modules)
        return (
            len(objects) == len(self._objects)
            and all(map(operator.is_, objects, self._objects))
            and _filled(modules) == self._filled
            and all([frozen(value) == before for value, before in self._mutable])
        )


class Kinds:
    """What the code of a module and of all inside of it can read beside what `Watch` looks at.

    That is what stands on their classes, lists that may change in place, and what they did not have.
    """

    def __init__(self, root: nn.Module) -> None:
        """Look at them."""
        modules = self._modules = list(root.modules())
        self._sizes = self._count()
        self._classes = tuple(dict.fromkeys([cls for module in modules for cls in _bases(module)]))
        self._objects = self._look()
        values = [value for module in modules for _, value in _own_settings(module)]
        values += [value for cls in self._classes for _, value in cls.__dict__.items()]
        self._mutable = [(value, frozen(value)) for value in values if _may_change(value)]

    def holds(self) -> bool:
        """Whether nothing on a class was exchanged, and no list was changed in place."""
        objects = self._look()
        return (
            self._count() == self._sizes
            and len(objects) == len(self._objects)
            and all(map(operator.is_, objects, self._objects))
            and all([frozen(value) == before for value, before in self._mutable])
        )

    def _count(self) -> list[Any]:
        """Return how many attributes each module has, and which tensors and children: there may be more."""
        return [[len(module.__dict__) for module in self._modules], _filled(self._modules)]

    def _look(self) -> list[Any]:
        return [part for cls in self._classes for part in (*cls.__dict__, *cls.__dict__.values())]


def setting_names(module: nn.Module) -> list[str]:
    """Return the names of the attributes that are a module's own: no weights, children or hooks."""
    return [name for name in module.__dict__ if name not in _INTERNAL]


def fingerprint(module: nn.Module) -> Fingerprint:
    """Return names and values of all that a module's forward can read, but for the values of its weights."""
    parts = [(name, frozen(value)) for name, value in _settings(module)]
    parts += zip(_TENSORS_AND_CHILDREN, _filled((module,)), strict=True)
    for cls in _bases(module):
        parts.append((cls.__qualname__, cls))
        parts += [(name, value) for name, value in cls.__dict__.items() if _is_code(value)]
    return tuple(parts)


def why_unknown(parts: Fingerprint) -> str | None:
    """Return what in a fingerprint does not decide what a module computes, or None."""
    for name, value in parts:
        found = _opaque_in(value)
        if found is not None:
            return f"its attribute {name} holds a {found.type_name}, which may be a state"
        if name == "_buffers" and value:
            return f"it has a buffer, {value[0]}, which may be a state"
    return None


def frozen(value: Any, depth: int = _DEPTH) -> Hashable:
    """Return a setting as something to compare; an object that may hold anything as `Opaque`."""
    kind = type(value)
    if kind in _NUMBERS:
        return kind, value
    if kind in _ATOMS or isinstance(value, enum.Enum):
        return value
    if isinstance(value, (tuple, list)) and not hasattr(value, "__dict__"):
        if depth and len(value) <= _MOST_ITEMS:
            return (kind, *[frozen(item, depth - 1) for item in value])
    if isinstance(value, type) and not _has_values(value):
        return value
    return Opaque(kind.__name__)


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the attributes of a module and of its classes, but for functions and what Python keeps there."""
    settings = _own_settings(module)
    for cls in _bases(module):
        settings += [item for item in cls.__dict__.items() if _is_setting(*item)]
    return settings


def _own_settings(module: nn.Module) -> list[tuple[str, Any]]:
    return [item for item in module.__dict__.items() if item[0] not in _INTERNAL]


def _bases(module: nn.Module) -> list[type]:
    return [cls for cls in type(module).__mro__ if cls not in _ROOTS]


def _filled(modules: Sequence[nn.Module]) -> list[tuple[str, ...]]:
    """Return the names of parameters, buffers and children that are not None."""
    return [
        tuple([name for name, value in module.__dict__[kind].items() if value is not None])
        for module in modules
        for kind in _TENSORS_AND_CHILDREN
    ]


def _objects(modules: Sequence[nn.Module]) -> list[Any]:
    """Return the objects themselves, with their names, that a fingerprint is made of."""
    objects: list[Any] = []
    for module in modules:
        objects.append(type(module))
        for item in module.__dict__.items():
            if item[0] not in _INTERNAL:
                objects += item
        for cls in _bases(module):
            objects += cls.__dict__
            objects += cls.__dict__.values()
    return objects


def _is_code(value: Any) -> bool:
    """Whether a class attribute is a function, a property or the like, which does not change."""
    return type(value) is types.FunctionType or hasattr(type(value), "__get__")


def _is_setting(name: str, value: Any) -> bool:
    return not (name.startswith("__") or name == "_abc_impl" or _is_code(value))


def _may_change(value: Any) -> bool:
    """Whether something that `frozen` accepts may become something else in place."""
    if isinstance(value, tuple):
        return any(_may_change(item) for item in value)
    return isinstance(value, list | type)


def _has_values(cls: type) -> bool:
    """Whether a class carries values of its own, which may be changed."""
    bases = (base for base in cls.__mro__ if base not in _ROOTS)
    return any(_is_setting(*item) for base in bases for item in base.__dict__.items())


def _opaque_in(value: Hashable) -> Opaque | None:
    if isinstance(value, Opaque):
        return value
    if isinstance(value, tuple):
        return next((found for item in value if (found := _opaque_in(item))), None)
    return None
