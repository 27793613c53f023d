"""The VAE of a pipeline, and diffusers' flags for tiles and for windows in time.

Flags are never set on the user's model, which other threads may be running: a call with other flags runs the
methods of a shallow clone, which shares all submodules and parameters.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from torch import nn

_WINDOWS = ("use_framewise_encoding", "use_framewise_decoding")


def vae_of(given: Any) -> Any:
    """Return the VAE of a pipeline; anything else as it is."""
    found = None if isinstance(given, nn.Module) else getattr(given, "vae", None)
    return found if isinstance(found, nn.Module) else given


def has_tiling(model: nn.Module) -> bool:
    """Tell whether diffusers can tile this model."""
    return hasattr(model, "use_tiling") and hasattr(model, "enable_tiling")


def in_one_piece(model: nn.Module) -> nn.Module:
    """Return a shallow clone that uses no tiles, and no overlapping windows in time."""
    # Mochi has the flags and means its chunks, which do not overlap.
    windows = _WINDOWS if hasattr(model, "_temporal_tiled_decode") else ()
    return _with_flags(model, {"use_tiling": False, **dict.fromkeys(windows, False)})


def in_tiles(model: nn.Module) -> nn.Module:
    """Return a shallow clone that uses diffusers' tiles as they are set; windows in time stay."""
    return _with_flags(model, {"use_tiling": True})


def _with_flags(model: nn.Module, flags: dict[str, bool]) -> nn.Module:
    """Return a clone with those of the flags that the model has; what a call sets on it is lost with it."""
    clone = object.__new__(type(model))  # a class may give copy.copy another meaning
    state = {name: _rebound(value, model, clone) for name, value in model.__dict__.items()}
    clone.__dict__.update(state)
    clone.__dict__.update({name: value for name, value in flags.items() if hasattr(model, name)})
    return clone


def _rebound(value: Any, model: nn.Module, clone: nn.Module) -> Any:
    """Return an attribute; a method that was put on the instance (by a swap, a hook) is one of the clone."""
    if isinstance(value, functools.partial) and value.args and value.args[0] is model:
        return functools.partial(value.func, clone, *value.args[1:], **value.keywords)
    if isinstance(value, types.MethodType) and value.__self__ is model:
        return types.MethodType(value.__func__, clone)
    return value
