"""Whether modules are still what was read: looked at before every run, so it makes no calls that cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What may be put on a module that had none.
_ADDED = ("forward", "_hf_hook", "_diffusers_hook")
# Caches and bookkeeping of nn.Module, and what is looked at by itself.
_LEFT_OUT = frozenset(nn.Module().__dict__) - {"training", "_compiled_call_impl"}


class Watch:
    """What modules hold beside the values of their weights: settings, hooks, children, kinds of weights."""

    def __init__(self, root: nn.Module, aside: Sequence[tuple[nn.Module, str]] = ()) -> None:
        """Look at a module and at all inside of it, but for the attributes `aside`, which hold states."""
        left_out = {(id(module), name) for module, name in aside}
        parts, tensors, filled = [], [], []
        for module in root.modules():
            state = module.__dict__
            settings = [(name, state[name]) for name in state if name not in _LEFT_OUT]
            if left_out:
                settings = [pair for pair in settings if (id(module), pair[0]) not in left_out]
            hooked = [(name, bool(state[name])) for name in _HOOKS]
            missing = [name for name in _ADDED if name not in state]
            children, parameters = state["_modules"], state["_parameters"]
            kept = [(name, children[name]) for name in children]
            names = set(children)
            parts.append((module, type(module), state, settings, hooked, missing, children, kept, names))
            there = [name for name in parameters if parameters[name] is not None]
            tensors += [(parameters, name) for name in there]
            filled.append((parameters, there))
        self._parts, self._tensors, self._filled = parts, tensors, filled
        self._kinds = self._look()

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters, as they are now."""
        return [parameters[name] for parameters, name in self._tensors]

    def holds(self) -> bool:
        """Whether nothing was exchanged, hooked or set since; a weight may have been assigned anew."""
        try:
            for module, kind, state, settings, hooked, missing, children, kept, names in self._parts:
                if module.__class__ is not kind:
                    return False
                for name, value in settings:
                    if state[name] is not value:
                        return False
                for name in missing:
                    if name in state:
                        return False
                for name, before in hooked:
                    if (not state[name]) is before:
                        return False
                for name, child in kept:
                    if children[name] is not child:
                        return False
                for name in children:
                    if name not in names:
                        return False
            for parameters, there in self._filled:
                for name in parameters:
                    if parameters[name] is not None and name not in there:
                        return False
            return self._look() == self._kinds
        except (KeyError, AttributeError):
            return False

    def _look(self) -> list[Any]:
        found: list[Any] = []
        for parameters, name in self._tensors:
            tensor = parameters[name]
            found += (tensor.__class__, tensor.dtype, tensor.device, tensor.shape, tensor.stride())
        return found
