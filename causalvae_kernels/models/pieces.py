"""Whether a model takes a clip in one piece: diffusers' flags for tiles and for windows in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_WINDOWS = ("use_framewise_encoding", "use_framewise_decoding")


def has_tiling(model: nn.Module) -> bool:
    """Tell whether diffusers can tile this model."""
    return hasattr(model, "use_tiling") and hasattr(model, "enable_tiling")


@contextmanager
def in_one_piece(model: nn.Module) -> Iterator[None]:
    """No tiles, and no overlapping windows in time, inside of `with`."""
    # Mochi has the flags and means its chunks, which do not overlap.
    windows = _WINDOWS if hasattr(model, "_temporal_tiled_decode") else ()
    with _flags(model, {"use_tiling": False, **dict.fromkeys(windows, False)}):
        yield


@contextmanager
def in_tiles(model: nn.Module) -> Iterator[None]:
    """Diffusers' tiles, of the size and overlap that are set, inside of `with`; windows in time stay."""
    with _flags(model, {"use_tiling": True}):
        yield


@contextmanager
def _flags(model: nn.Module, flags: dict[str, bool]) -> Iterator[None]:
    before = {name: model.__dict__[name] for name in flags if name in model.__dict__}
    try:
        for name in before:
            setattr(model, name, flags[name])
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)
