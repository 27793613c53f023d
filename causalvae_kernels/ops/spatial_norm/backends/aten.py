"""The spatial norm by the framework: scale and shift are broadcast where they repeat evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from ....core.backend import Backend
from ...norms.group_norm import activate, activate_into, careful_group_norm
from ..reference import upsample
from ..spec import SpatialNormArgs, repeats


def _make(args: SpatialNormArgs, precision: str) -> Tensor:
    return activate(_modulated(args, precision), args.silu)


def _write(out: Tensor, args: SpatialNormArgs, precision: str) -> None:
    activate_into(out, _modulated(args, precision), args.silu, precision)


def _modulated(args: SpatialNormArgs, precision: str) -> Tensor:
    y = careful_group_norm(args.x, args.num_groups, args.weight, args.bias, args.eps, precision)
    return _modulate(y, args.scale, args.shift, precision == "exact")


def _modulate(y: Tensor, scale: Tensor, shift: Tensor, exact: bool) -> Tensor:
    """Return y * up(scale) + up(shift), written over `y` if the dtype is its own; exactly: rounded twice."""
    dtype = torch.promote_types(y.dtype, scale.dtype)
    y, scale, shift = (t.to(dtype) for t in (y, scale, shift))
    found = repeats(y.shape[2:], scale.shape[2:])
    if found is None:
        size = y.shape[2:]
        _multiply_add(y, upsample(scale, size), upsample(shift, size), exact)
        return y
    lone, time, rows, columns = found
    pieces = [(slice(0, 1), 1), (slice(1, None), time)] if lone else [(slice(None), time)]
    for piece, frames in pieces:
        view = y[:, :, piece].unflatten(3, (-1, rows)).unflatten(2, (-1, frames))
        factors = (s[:, :, piece] for s in (scale, shift))
        if columns > 1:
            # Columns are repeated, frames and rows broadcast, so that the factors stay in the cache.
            factors = (s.unsqueeze(5).expand(*s.shape, columns).flatten(4) for s in factors)
        _multiply_add(view, *(s.unsqueeze(4).unsqueeze(3) for s in factors), exact)
    return y


def _multiply_add(y: Tensor, scale: Tensor, shift: Tensor, exact: bool) -> None:
    if exact:
        y.mul_(scale).add_(shift)
    else:
        torch.addcmul(shift, y, scale, out=y)


NORM = Backend("aten", _write, _make)
