"""Wan's RMS norm in Triton, on NVIDIA GPUs: one pass over x, in the reference's order.

It rounds to the dtype of x where the model does, after the division, and once more at the end.
"""

from __future__ import annotations

from torch import Tensor

from .....core.backend import Backend
from ....norms.backends.triton import why_not_norm
from ...spec import RmsNormArgs, moves


def _why_not(args: RmsNormArgs, precision: str, out: Tensor | None) -> str | None:
    return why_not_norm(args.x, args.out_dtype, precision)


def _write(out: Tensor, args: RmsNormArgs, precision: str) -> None:
    from .kernels import launch

    launch(out, *args).run()


NORM = Backend("triton", _write, why_not=_why_not, moves=moves)
