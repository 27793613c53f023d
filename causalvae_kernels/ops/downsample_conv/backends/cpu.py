"""Downsampling convolution by the native CPU module: nothing is padded; averages are written once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....core import memory, native
from ....core.backend import Backend, Write
from ....core.layout import memory_format_of
from ...causal_conv3d.backends.cpu import DTYPES, Packing, find_or_pack, tile_packing, why_not
from ..spec import HALO, STRIDE, DownsampleArgs, moves
from .aten import average_into


def _convolve(out: Tensor, args: DownsampleArgs, precision: str) -> None:
    _run(out, args, tile_packing(args.weight), must_keep=False)


def _bind(args: DownsampleArgs, like: Tensor, must_keep: bool) -> Write:
    options, packing = args[3:], tile_packing(args.weight)

    def write(out: Tensor, tensors: tuple[Any, ...]) -> bool:
        return _run(out, DownsampleArgs(*tensors, *options), packing, must_keep)

    return write


def _run(out: Tensor, args: DownsampleArgs, packing: Packing | None, must_keep: bool) -> bool:
    """Convolve, unless packed weights must be kept and have no room; return whether that was done."""
    x, weight, frames = args.x, args.weight, out.shape[2]
    packed = None
    if packing is not None:
        packed = find_or_pack(weight, packing, out.numel() // out.shape[1], must_keep)
        if packed is None and must_keep:
            return False
    if frames < x.shape[2]:
        # A pass of its own: in the kernel's loader each pair would be averaged for every tap that sees it.
        source = memory.empty(
            (*x.shape[:2], frames, *x.shape[3:]),
            dtype=x.dtype,
            device=x.device,
            memory_format=memory_format_of(x),
        )
        average_into(source, x)
        x = source
    bias = None if args.bias is None else args.bias.contiguous()
    native.cpu_module().causal_conv3d(
        native.describe(out),
        native.describe(x),
        native.describe(weight),
        None if bias is None else native.address(bias),
        None,
        None,
        STRIDE,
        (1, 1, 1),
        HALO,
        "valid",
        "zeros",
        DTYPES[x.dtype],
        native.cpu_isa(),
        torch.get_num_threads(),
        None if packed is None else native.address(packed),
        None,
        "" if packing is None else packing.tiles,
    )
    return True


DOWNSAMPLE = Backend("cpu", _convolve, why_not=why_not, bind=_bind, moves=moves)
