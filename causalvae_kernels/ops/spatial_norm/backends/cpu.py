"""The spatial norm by the native CPU module: scale and shift are read where they lie, never repeated."""

from __future__ import annotations

import torch
from torch import Tensor

from ....core import native
from ....core.backend import Backend
from ...norms.backends.cpu import DTYPES, address, as_floats, why_not_norm
from ..spec import SpatialNormArgs, moves, repeats, why_not_scale


def _why_not(args: SpatialNormArgs, precision: str, out: Tensor | None) -> str | None:
    return why_not_norm(args.x, args.out_dtype, precision) or why_not_scale(args.x, args.scale)


def _write(out: Tensor, args: SpatialNormArgs, precision: str) -> None:
    weight, bias = as_floats(args.weight), as_floats(args.bias)
    lone_first, *times = repeats(args.x.shape[2:], args.scale.shape[2:])
    native.cpu_module().group_norm(
        native.describe(out),
        native.describe(args.x),
        native.describe(args.scale),
        native.describe(args.shift),
        address(weight),
        address(bias),
        args.num_groups,
        args.eps,
        args.silu,
        lone_first,
        tuple(times),
        DTYPES[args.x.dtype],
        native.cpu_isa(),
        torch.get_num_threads(),
    )


NORM = Backend("cpu", _write, why_not=_why_not, moves=moves)
