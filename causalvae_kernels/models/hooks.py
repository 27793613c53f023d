"""Which modules must be called rather than bypassed: hooked, parametrized, or not what a rule knows."""

from __future__ import annotations

import functools

from torch import nn
from torch.nn.modules import module as _module

_HOOK_DICTS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def type_name(module: nn.Module) -> str:
    """Return the class's name without its module path; classes outside diffusers and torch.nn keep theirs."""
    cls = type(module)
    name = _TYPE_NAMES.get(cls)
    if name is None:
        known = cls.__module__.startswith(("diffusers.", "torch.nn.modules."))
        name = cls.__qualname__ if known else f"{cls.__module__}.{cls.__qualname__}"
        _TYPE_NAMES[cls] = name
    return name


# No functools.cache: a compiler that traces a swapped model warns about those.
_TYPE_NAMES: dict[type, str] = {}


def why_hooked(module: nn.Module) -> str | None:
    """Return what is attached to a module that only calling it honours, or None."""
    state = module.__dict__
    for name in _HOOK_DICTS:
        if state.get(name):
            return f"it has {name}"
    reason = why_moved(module)
    if reason is not None:
        return reason
    return "it is parametrized" if "parametrizations" in state["_modules"] else None


def why_moved(module: nn.Module) -> str | None:
    """Return which hook around a module's `forward` may move or cast its weights, or None."""
    state = module.__dict__
    if "_hf_hook" in state:
        return "it has an accelerate hook (_hf_hook)"
    registry = state.get("_diffusers_hook")
    if registry is not None and registry.hooks:
        return f"it has diffusers hooks ({', '.join(registry.hooks)})"
    return None


def is_plain(module: nn.Module, ours: object) -> bool:
    """Tell quickly, on every call, that `why_hooked` and `has_foreign_method` would find nothing."""
    state = module.__dict__
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "_hf_hook" in state
        or "_diffusers_hook" in state
        or "parametrizations" in state["_modules"]
    ):
        return False
    forward = state.get("forward")
    return forward is None or (type(forward) is functools.partial and forward.func is ours)


def why_globally_hooked() -> str | None:
    """Return which process-wide module hooks are registered, or None."""
    if not (
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    ):
        return None
    names = [name for name in _HOOK_DICTS if getattr(_module, f"_global{name}")]
    return f"torch has process-wide {', '.join(names)}"


def has_foreign_method(
    module: nn.Module, ours: object, name: str = "forward", place: str | None = None
) -> bool:
    """Tell whether someone else put a method on the instance.

    Args:
        module: The module.
        ours: The function whose `functools.partial` counts as ours.
        name: Of the method.
        place: The attribute that holds it, if that is another one.
    """
    method = module.__dict__.get(place or name)
    if method is None:
        return False
    if isinstance(method, functools.partial) and method.func is ours:
        return False
    # A hook that was removed again leaves the class's own method, bound, on the instance.
    return not (
        getattr(method, "__self__", None) is module
        and getattr(method, "__func__", None) is getattr(type(module), name)
    )
