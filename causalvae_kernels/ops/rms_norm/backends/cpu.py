"""Wan's RMS norm by the native CPU module: one pass over x, in the reference's order.

It rounds to the dtype of x where the model does, after the division, and once more at the end. The model
rounds as well after scaling, multiplying, adding and activating, each of which costs digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....core import native
from ....core.backend import Backend
from ...norms.backends.cpu import DTYPES, address, as_floats, why_not_norm
from ..spec import RmsNormArgs, moves


def _why_not(args: RmsNormArgs, precision: str, out: Tensor | None) -> str | None:
    return why_not_norm(args.x, args.out_dtype, precision)


def _write(out: Tensor, args: RmsNormArgs, precision: str) -> None:
    weight, bias = as_floats(args.weight), as_floats(args.bias)
    native.cpu_module().rms_norm(
        native.describe(out),
        native.describe(args.x),
        address(weight),
        address(bias),
        args.eps,
        args.silu,
        DTYPES[args.x.dtype],
        native.cpu_isa(),
        torch.get_num_threads(),
    )


NORM = Backend("cpu", _write, why_not=_why_not, moves=moves)
