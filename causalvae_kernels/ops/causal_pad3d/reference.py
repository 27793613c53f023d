"""Causal padding in pure PyTorch: time first, then space. Defines `causal_pad3d` and `causal_pad3d_`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...temporal.frame_buffer import body_of
from ...temporal.state import past_frames
from .spec import BorderArgs, PadArgs


def causal_pad3d_reference(args: PadArgs) -> Tensor:
    """Concatenate the past and the frames, then pad height and width."""
    x, state, causal_padding, (top, bottom, left, right), temporal_mode, spatial_mode = args
    if causal_padding:
        x = torch.cat([*past_frames(x, causal_padding, state, temporal_mode), x], dim=2)
    if spatial_mode == "zeros":
        return F.pad(x, (left, right, top, bottom)) if any(args.spatial_padding) else x.clone()
    for dim, before, after in ((3, top, bottom), (4, left, right)):
        x = x.index_select(dim, source_index(x.shape[dim], before, after, spatial_mode, x.device))
    return x


def causal_pad3d__reference(storage: Tensor, args: BorderArgs) -> None:
    """Pad the body of `storage` and write all of it back."""
    body = body_of(storage, args.causal_padding, args.spatial_padding)
    storage.copy_(causal_pad3d_reference(PadArgs(body, *args)))


def causal_pad3d_vjp(
    grad: Tensor,
    needs: set[str],
    given: frozenset[str],
    *,
    causal_padding: int,
    spatial_padding: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    **_: object,
) -> dict[str, Tensor | None]:
    """Add up what each source element was copied to: the transpose of the padding."""
    top, bottom, left, right = spatial_padding
    for dim, before, after in ((3, top, bottom), (4, left, right)):
        size = grad.shape[dim] - before - after
        if spatial_mode == "zeros":
            grad = grad.narrow(dim, before, size)
        elif before or after:
            index = source_index(size, before, after, spatial_mode, grad.device)
            shape = [size if d == dim else n for d, n in enumerate(grad.shape)]
            grad = grad.new_zeros(shape).index_add(dim, index, grad)
    past, frames = grad[:, :, :causal_padding], grad[:, :, causal_padding:]
    if "initial_state" in given:
        return {"x": frames, "initial_state": past}
    if temporal_mode == "replicate" and causal_padding:
        first = frames[:, :, :1] + past.sum(dim=2, keepdim=True)
        frames = torch.cat([first, frames[:, :, 1:]], dim=2)
    return {"x": frames}


def source_index(size: int, before: int, after: int, spatial_mode: str, device: torch.device) -> Tensor:
    """Return which of `size` pixels each padded position shows ("replicate" or "reflect")."""
    index = torch.arange(-before, size + after, device=device)
    if spatial_mode == "reflect":
        return (size - 1) - (index.abs() - (size - 1)).abs()
    return index.clamp(0, size - 1)
