"""Upsampling convolution by the native CPU module: folded kernels on the small frames, nothing upsampled.

By Winograd's algorithm the frames are transformed once for all phases of the output, and of the 36 values of
a tile a folded kernel takes 25 (docs/design/winograd.md). Otherwise there is a direct convolution for each
phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....core import memory, native
from ....core.backend import Backend, Write
from ....core.packed import find_packed
from ...causal_conv3d.backends.cpu import DTYPES, why_not
from ..spec import UpsampleArgs, folded_kernel, folds_time, moves, takes_winograd
from .folding import fold_space, fold_time, of_pairs, phases, time_slices, with_zero_taps

_ONES = (1, 1, 1)


def _convolve(out: Tensor, args: UpsampleArgs, precision: str) -> None:
    _run(out, args, must_keep=False)


def _bind(args: UpsampleArgs, like: Tensor, must_keep: bool) -> Write:
    options = args[4:]

    def write(out: Tensor, tensors: tuple[Any, ...]) -> bool:
        return _run(out, UpsampleArgs(*tensors, *options), must_keep)

    return write


def _run(out: Tensor, args: UpsampleArgs, must_keep: bool) -> bool:
    """Convolve, unless packed weights must be kept and have no room; return whether that was done."""
    x, weight, scale, first_chunk = args.x, args.weight, args.scale, args.first_chunk
    bias = None if args.bias is None else args.bias.contiguous()
    past = args.initial_state if weight.shape[2] == 3 else None
    seconds, firsts = of_pairs(out, first_chunk)
    repeats = scale[0] == 2 and weight.shape[2] == 1
    written = seconds if repeats else out  # frames that are equal are computed once
    isa = native.cpu_isa()
    packed = None
    if takes_winograd(weight.shape, scale, x.shape[3:]):
        packed = _packed(weight, scale, x.numel() // x.shape[1], isa, must_keep)
        if packed is None and must_keep:
            return False
    if packed is None:
        _directly(written, args._replace(bias=bias, initial_state=past), isa)
    else:
        doubled = "first_single" if first_chunk else "pairs"
        native.cpu_module().upsample_conv(
            native.describe(written),
            native.describe(x),
            native.describe(weight[:, :, : folded_kernel(weight.shape[2:], scale)[0]]),  # its sizes count
            None if bias is None else native.address(bias),
            None if past is None else native.describe(past),
            doubled if args.folds_time else "none",
            scale[1] == 2,
            args.temporal_mode,
            args.spatial_mode,
            DTYPES[x.dtype],
            isa,
            torch.get_num_threads(),
            native.address(packed),
        )
    if repeats:
        firsts.copy_(seconds[:, :, int(first_chunk) :])
    return True


def _directly(out: Tensor, args: UpsampleArgs, isa: str) -> None:
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


# Transforming the weights on every call pays from about so many input pixels on: it writes 400 bytes per pair
# of channels, at 3 GB/s, and saves 20 of 32 operations per pair and pixel, at 200 GFLOP/s.
_MANY_PIXELS = 2**12


def _packed(weight: Tensor, scale: Sequence[int], pixels: int, isa: str, must_keep: bool) -> Tensor | None:
    """Return the transformed weights, or None where they are not kept and not worth it for one call."""
    kind, size = packing(weight, scale, isa)
    packed = find_packed(weight, kind, size, pixels, lambda: _pack(weight, scale, size, isa))
    anew = packed is None and pixels >= _MANY_PIXELS and not must_keep
    return _pack(weight, scale, size, isa) if anew else packed


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


def packing(weight: Tensor, scale: Sequence[int], isa: str) -> tuple[object, int]:
    """Return what decides how the weights of all phases are packed, and how many bytes they take."""
    folds, in_phases = folds_time(weight.shape, scale), phases(scale)
    sizes = native.describe(weight[:, :, :1] if folds else weight)
    floats = native.cpu_module().winograd_packed_floats(sizes, isa, in_phases[0].zero_taps)
    return ("upsample winograd", tuple(scale), isa), 4 * floats * len(in_phases) * (3 if folds else 1)


UPSAMPLE = Backend("cpu", _convolve, why_not=why_not, bind=_bind, moves=moves)
