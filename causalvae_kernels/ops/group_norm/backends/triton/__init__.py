"""Group norm in Triton, on NVIDIA GPUs: two passes over x, the second of which activates and writes."""

from __future__ import annotations

from torch import Tensor

from .....core.backend import Backend
from ....norms.backends.triton import why_not_norm
from ...spec import GroupNormArgs, moves


def _why_not(args: GroupNormArgs, precision: str, out: Tensor | None) -> str | None:
    return why_not_norm(args.x, args.out_dtype, precision)


def _write(out: Tensor, args: GroupNormArgs, precision: str) -> None:
    from ....norms.backends.triton.group_norm import launches

    for launch in launches(out, *args):
        launch.run()


NORM = Backend("triton", _write, why_not=_why_not, moves=moves)
