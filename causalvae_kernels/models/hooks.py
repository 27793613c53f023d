"""Which modules must be called rather than bypassed: hooked, parametrized, or not what a rule knows."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn.modules import module as _module

_HOOK_DICTS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOK_DICTS = tuple(f"_global{name}" for name in _HOOK_DICTS)


def type_name(module: nn.Module) -> str:
    """Return the class's name without its module path; classes outside diffusers and torch keep theirs."""
    cls = type(module)
    known = cls.__module__.partition(".")[0] in ("diffusers", "torch")
    return cls.__qualname__ if known else f"{cls.__module__}.{cls.__qualname__}"


def why_hooked(module: nn.Module) -> str | None:
    """Return what is attached to a module that only calling it honours, or None."""
    state = module.__dict__
    for name in _HOOK_DICTS:
        if state.get(name):
            return f"it has {name}"
    if "_hf_hook" in state:
        return "it has an accelerate hook (_hf_hook)"
    registry = state.get("_diffusers_hook")
    if registry is not None and registry.hooks:
        return f"it has diffusers hooks ({', '.join(registry.hooks)})"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "it is parametrized"
    return None


def why_globally_hooked() -> str | None:
    """Return which process-wide module hooks are registered, or None."""
    for name in _GLOBAL_HOOK_DICTS:
        if getattr(_module, name, None):
            return f"torch has process-wide {name}"
    return None


def has_foreign_forward(module: nn.Module, ours: object) -> bool:
    """Tell whether someone else put a `forward` on the instance.

    Args:
        module: The module.
        ours: The function whose `functools.partial` counts as ours.
    """
    forward = module.__dict__.get("forward")
    if forward is None:
        return False
    if isinstance(forward, functools.partial) and forward.func is ours:
        return False
    # A hook that was removed again leaves the class's own method, bound, on the instance.
    return not (
        getattr(forward, "__self__", None) is module
        and getattr(forward, "__func__", None) is type(module).forward
    )
