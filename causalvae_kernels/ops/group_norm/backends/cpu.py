"""Group norm by the native CPU module: two passes over x, the second of which activates and writes."""

from __future__ import annotations

import torch
from torch import Tensor

from ....core import native
from ....core.backend import Backend
from ...norms.backends.cpu import DTYPES, address, as_floats, why_not_norm
from ..spec import GroupNormArgs, moves


def _why_not(args: GroupNormArgs, precision: str, out: Tensor | None) -> str | None:
    return why_not_norm(args.x, args.out_dtype, precision)


def _write(out: Tensor, args: GroupNormArgs, precision: str) -> None:
    weight, bias = as_floats(args.weight), as_floats(args.bias)
    native.cpu_module().group_norm(
        native.describe(out),
        native.describe(args.x),
        None,
        None,
        address(weight),
        address(bias),
        args.num_groups,
        args.eps,
        args.silu,
        False,
        (1, 1, 1),
        DTYPES[args.x.dtype],
        native.cpu_isa(),
        torch.get_num_threads(),
    )


NORM = Backend("cpu", _write, why_not=_why_not, moves=moves)
