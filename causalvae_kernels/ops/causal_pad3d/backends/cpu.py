"""Causal padding by the native CPU module: threaded, border only where the frames are there already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....core import native
from ....core.backend import Backend
from ..spec import BorderArgs, PadArgs, moves, moves_in_place


def _why_not(args: PadArgs, precision: str, out: Tensor | None) -> str | None:
    return _why_not_frames(args.x)


def _why_not_in_place(args: BorderArgs, precision: str, out: Tensor) -> str | None:
    return _why_not_frames(out)


def _why_not_frames(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"the tensor is on {x.device}, the kernel runs on a CPU"
    if x.element_size() > 8:
        return f"{x.dtype} has {x.element_size()} bytes, the kernel copies 1, 2, 4 or 8"
    return native.why_no_cpu()


def _pad(out: Tensor, args: PadArgs, precision: str) -> None:
    x, *border = args
    native.cpu_module().causal_pad3d(
        native.describe(out),
        native.describe(x),
        *described(*border),
        x.element_size(),
        torch.get_num_threads(),
    )


def _pad_(storage: Tensor, args: BorderArgs, precision: str) -> None:
    native.cpu_module().causal_pad3d_(
        native.describe(storage), *described(*args), storage.element_size(), torch.get_num_threads()
    )


def described(
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
) -> tuple[Any, ...]:
    """Return what the native modules are told of a border."""
    state = None if initial_state is None else native.describe(initial_state)
    return state, causal_padding, tuple(spatial_padding), temporal_mode, spatial_mode


PAD = Backend("cpu", _pad, why_not=_why_not, moves=moves)
PAD_ = Backend("cpu", _pad_, why_not=_why_not_in_place, moves=moves_in_place)
