"""Causal padding by the CUDA module: one launch, over the border only where the frames are there already."""

from __future__ import annotations

import torch
from torch import Tensor

from ....core import native
from ....core.backend import Backend
from ..spec import BorderArgs, PadArgs, moves, moves_in_place
from .cpu import described

# As csrc/cuda/host/pad_walk.h has them: the elements of a padded frame are counted in 31 bits, in blocks of
# 1024 of which the last may reach over the end; a change of layout takes tiles of a row, 64 by 64, of 8 bytes
# 32.
_BLOCK = 1024
_MOST_ELEMENTS = 2**31 - _BLOCK
_MOST_BLOCKS = 2**31


def why_not(args: PadArgs, precision: str, out: Tensor | None) -> str | None:
    """Return why the frames cannot be copied between a border, into whatever layout, or None."""
    _, _, *size = args.out_shape
    return _why_not_frames(args.x, *size)


def _why_not_in_place(args: BorderArgs, precision: str, out: Tensor) -> str | None:
    frames = out.shape[2] if any(args.spatial_padding) else args.causal_padding
    return _why_not_frames(out, frames, *out.shape[3:])


def _why_not_frames(x: Tensor, frames: int, height: int, width: int) -> str | None:
    """Say what the module would refuse of this many padded frames; its count of blocks may be smaller."""
    if x.element_size() > 8:
        return f"{x.dtype} has {x.element_size()} bytes, the kernel copies 1, 2, 4 or 8"
    channels = x.shape[1]
    elements = channels * height * width
    if elements >= _MOST_ELEMENTS:
        return f"a padded frame has {elements} elements, the kernel takes fewer than {_MOST_ELEMENTS}"
    side = 64 if x.element_size() < 8 else 32
    tiles = height * -(-width // side) * -(-channels // side)
    blocks = x.shape[0] * frames * max(-(-elements // _BLOCK), tiles)
    if blocks >= _MOST_BLOCKS:
        return f"the padding takes up to {blocks} blocks, a launch has fewer than {_MOST_BLOCKS}"
    return native.why_no_cuda(x.device)


def padded_copy(args: PadArgs, memory_format: torch.memory_format) -> Tensor:
    """Return the padded frames in this memory format: padding and change of layout in one pass."""
    out = torch.empty(args.out_shape, dtype=args.out_dtype, device=args.x.device, memory_format=memory_format)
    _pad(out, args, "exact")
    return out


def _pad(out: Tensor, args: PadArgs, precision: str) -> None:
    x, *border = args
    stream = native.current_stream(x.device)
    native.cuda_module().causal_pad3d(
        native.describe(out), native.describe(x), *described(*border), x.element_size(), *stream
    )


def _pad_(storage: Tensor, args: BorderArgs, precision: str) -> None:
    stream = native.current_stream(storage.device)
    native.cuda_module().causal_pad3d_(
        native.describe(storage), *described(*args), storage.element_size(), *stream
    )


PAD = Backend("cuda", _pad, why_not=why_not, moves=moves)
PAD_ = Backend("cuda", _pad_, why_not=_why_not_in_place, moves=moves_in_place)
