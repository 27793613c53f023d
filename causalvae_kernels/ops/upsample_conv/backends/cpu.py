"""Upsampling convolution by the native CPU module: folded kernels on the small frames, nothing upsampled.

By Winograd's algorithm the frames are transformed once for all phases of the output, and of the 36 values of
a tile a folded kernel takes 25 (docs/design/winograd.md). Otherwise there is a direct convolution for each
phase. On AMX's matrix tiles, whose weights must not be rounded sums, each pixel is read as four and all taps
are computed, 2.25 times the folded work (docs/design/tiles.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....core import memory, native
from ....core.backend import Backend, Write
from ....core.packed import find_packed
from ...causal_conv3d.backends.cpu import DTYPES, Packing, find_or_pack, tile_packing, why_not
from ..spec import UpsampleArgs, folded_kernel, folds_time, moves, takes_winograd
from .folding import fold_space, fold_time, of_pairs, phases, time_slices, with_zero_taps

_ONES = (1, 1, 1)


def _convolve(out: Tensor, args: UpsampleArgs, precision: str) -> None:
    _run(out, args, packing_of(args), must_keep=False)


def _bind(args: UpsampleArgs, like: Tensor, must_keep: bool) -> Write:
    options, packing = args[4:], packing_of(args)

    def write(out: Tensor, tensors: tuple[Any, ...]) -> bool:
        return _run(out, UpsampleArgs(*tensors, *options), packing, must_keep)

    return write


def _run(out: Tensor, args: UpsampleArgs, packing: Packing | None, must_keep: bool) -> bool:
    """Convolve, unless packed weights must be kept and have no room; return whether that was done."""
    bias = None if args.bias is None else args.bias.contiguous()
    args = args._replace(bias=bias, initial_state=args.initial_state if args.weight.shape[2] == 3 else None)
    seconds, firsts = of_pairs(out, args.first_chunk)
    repeats = args.scale[0] == 2 and args.weight.shape[2] == 1
    written = seconds if repeats else out  # frames that are equal are computed once
    packed = None
    if packing is not None:
        packed = _find_or_pack(args, packing, must_keep)
        if packed is None and must_keep:
            return False
    if packing is None or packed is None:
        _directly(written, args)
    elif packing.tiles:
        _on_tiles(written, args, packed, packing.tiles)
    else:
        _by_winograd(written, args, packed)
    if repeats:
        firsts.copy_(seconds[:, :, int(args.first_chunk) :])
    return True


def _by_winograd(out: Tensor, args: UpsampleArgs, packed: Tensor) -> None:
    weight, doubled = args.weight, "first_single" if args.first_chunk else "pairs"
    native.cpu_module().upsample_conv(
        native.describe(out),
        native.describe(args.x),
        native.describe(weight[:, :, : folded_kernel(weight.shape[2:], args.scale)[0]]),  # its sizes count
        None if args.bias is None else native.address(args.bias),
        None if args.initial_state is None else native.describe(args.initial_state),
        doubled if args.folds_time else "none",
        args.scale[1] == 2,
        args.temporal_mode,
        args.spatial_mode,
        DTYPES[args.x.dtype],
        native.cpu_isa(),
        torch.get_num_threads(),
        native.address(packed),
    )


def _on_tiles(out: Tensor, args: UpsampleArgs, packed: Tensor, tiles: str) -> None:
    native.cpu_module().causal_conv3d(
        native.describe(out),
        native.describe(args.x),
        native.describe(args.weight),
        None if args.bias is None else native.address(args.bias),
        None if args.initial_state is None else native.describe(args.initial_state),
        None,
        _ONES,
        _ONES,
        (1, 1, 1, 1),
        args.temporal_mode,
        args.spatial_mode,
        DTYPES[args.x.dtype],
        native.cpu_isa(),
        torch.get_num_threads(),
        native.address(packed),
        None,
        tiles,
        True,
    )


def _directly(out: Tensor, args: UpsampleArgs) -> None:
    isa = native.cpu_isa()
    x, weight, bias, past = args.x, args.weight.float(), args.bias, args.initial_state
    parts = [(out, x, past, weight)]
    if args.folds_time:
        seconds, firsts = of_pairs(out, args.first_chunk)
        for_seconds, for_firsts = fold_time(weight)
        parts = [(seconds, x, past, for_seconds)]
        if not args.first_chunk:
            parts.append((firsts, x, past, for_firsts))
        elif x.shape[2] > 1:  # the first pair follows the single frame, which is its past
            parts.append((firsts, x[:, :, 1:], x[:, :, :1], for_firsts))
    for window, frames, state, part in parts:
        for phase in phases(args.scale):
            kernel = fold_space(part, phase)
            native.cpu_module().causal_conv3d(
                native.describe(phase.of(window)),
                native.describe(frames),
                native.describe(kernel),
                None if bias is None else native.address(bias),
                None if state is None else native.describe(state),
                None,
                _ONES,
                _ONES,
                phase.padding,
                args.temporal_mode,
                args.spatial_mode,
                DTYPES[x.dtype],
                isa,
                torch.get_num_threads(),
                None,
                "float32",
            )


def _find_or_pack(args: UpsampleArgs, packing: Packing, must_keep: bool) -> Tensor | None:
    """Return the packed weights, or None where they are not kept and not worth it for one call."""
    weight, pixels = args.weight, args.x.numel() // args.x.shape[1]
    if packing.tiles:
        return find_or_pack(weight, packing, pixels, must_keep)

    def pack() -> Tensor:
        return _pack(weight, args.scale, packing.size, packing.unit)

    packed = find_packed(weight, packing.kind, packing.size, pixels, pack)
    # 400 bytes per pair of channels are written, at 3 GB/s, and 20 of 32 operations per pair and input pixel
    # saved, at 200 GFLOP/s.
    return pack() if packed is None and pixels >= packing.many_pixels and not must_keep else packed


def _pack(weight: Tensor, scale: Sequence[int], size: int, isa: str) -> Tensor:
    """Return the kernels of all phases, one after another, each in its slices."""
    packed, weight = memory.empty((size // 4,)), weight.float()
    slices = time_slices(weight) if folds_time(weight.shape, scale) else (weight,)
    kernels = [
        (phase, with_zero_taps(phase, fold_space(s, phase))) for phase in phases(scale) for s in slices
    ]
    for part, (phase, kernel) in zip(packed.chunk(len(kernels)), kernels, strict=True):
        native.cpu_module().winograd_pack(
            native.address(part),
            native.describe(kernel),
            "float32",
            isa,
            torch.get_num_threads(),
            phase.zero_taps,
        )
    return packed


def packing_of(args: UpsampleArgs) -> Packing | None:
    """Return how the weights of a call are packed; None: they are not."""
    weight, scale = args.weight, args.scale
    if scale[1] == 2 and not folds_time(weight.shape, scale):
        on_tiles = tile_packing(weight)
        if on_tiles is not None:
            return on_tiles
    if takes_winograd(weight.shape, scale, args.x.shape[3:]):
        return winograd_packing(weight, scale, native.cpu_isa())
    return None


def winograd_packing(weight: Tensor, scale: Sequence[int], isa: str) -> Packing:
    """Return how Winograd's weights of all phases are packed."""
    folds, in_phases = folds_time(weight.shape, scale), phases(scale)
    sizes = native.describe(weight[:, :, :1] if folds else weight)
    floats = native.cpu_module().winograd_packed_floats(sizes, isa, in_phases[0].zero_taps)
    size = 4 * floats * len(in_phases) * (3 if folds else 1)
    return Packing(f"winograd, upsampled {'x'.join(map(str, scale))}", isa, size)


UPSAMPLE = Backend("cpu", _convolve, why_not=why_not, bind=_bind, moves=moves)
