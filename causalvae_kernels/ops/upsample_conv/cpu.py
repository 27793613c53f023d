"""Upsampling convolution by the native CPU module: folded kernels on the small frames, nothing upsampled.

By Winograd's algorithm the frames are transformed once for all phases of the output, and of the 36 values of
a tile a folded kernel takes 25 (docs/winograd.md). Otherwise there is a direct convolution for each phase.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import memory, native
from ...core.layout import memory_format_of
from ...core.op import Backend
from ...core.packed import find_packed
from ..causal_conv3d.cpu import DTYPES, why_not
from .folding import Phase, folded, phases, with_zero_taps
from .spec import folded_kernel, output_size, takes_winograd

_ONES = (1, 1, 1)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    scale: Sequence[int],
    first_chunk: bool,
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> Tensor:
    out = memory.empty(
        (x.shape[0], weight.shape[0], *output_size(x.shape, scale, first_chunk)),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x, weight),
    )
    repeats = scale[0] == 2 and weight.shape[2] == 1
    # The second frames of all pairs, and a single first one, are every second frame from the end.
    written = out[:, :, 1 - int(first_chunk) :: 2] if repeats else out
    doubles_time = scale[0] == 2 and not repeats
    bias = None if bias is None else bias.contiguous()
    past = initial_state if weight.shape[2] == 3 else None
    if past is not None and doubles_time:
        past = past[:, :, -1:]
    isa, threads = native.cpu_isa(), torch.get_num_threads()
    packed = None
    if takes_winograd(weight.shape, scale, x.shape[3:]):
        packed = _packed(weight, scale, x.shape[0] * x.shape[2] * x.shape[3] * x.shape[4], isa, threads)
    if packed is not None:
        native.cpu_module().upsample_conv(
            native.describe(written),
            native.describe(x),
            native.describe(_sizes_of_a_kernel(weight, scale)),
            None if bias is None else bias.data_ptr(),
            None if past is None else native.describe(past),
            doubles_time,
            scale[1] == 2,
            doubles_time and first_chunk,
            temporal_mode,
            spatial_mode,
            DTYPES[x.dtype],
            isa,
            threads,
            packed.data_ptr(),
        )
    else:
        for phase, kernel in folded(weight, scale):
            window, frames, state = _window_of(written, x, past, phase, doubles_time, first_chunk)
            if window.shape[2] == 0:
                continue
            native.cpu_module().causal_conv3d(
                native.describe(window),
                native.describe(frames),
                native.describe(kernel),
                None if bias is None else bias.data_ptr(),
                None if state is None else native.describe(state),
                None,
                _ONES,
                _ONES,
                phase.padding,
                temporal_mode,
                spatial_mode,
                DTYPES[x.dtype],
                isa,
                threads,
                None,
                "float32",
            )
    if repeats:
        twins = out[:, :, int(first_chunk) :: 2]
        twins.copy_(written[:, :, int(first_chunk) :])
    return out


def _window_of(
    out: Tensor, x: Tensor, past: Tensor | None, phase: Phase, doubles_time: bool, first_single: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the output elements of a phase, and the frames and the state that they see."""
    if doubles_time:
        first = int((phase.time == 1) != first_single)
        out = out[:, :, first::2]
        if first_single and phase.time == 0:
            # There is no first frame of a pair before the second input frame: the first one is its past.
            past, x = x[:, :, :1], x[:, :, 1:]
    if phase.rows is not None:
        out = out[:, :, :, phase.rows :: 2, phase.columns :: 2]
    return out, x, past


# Transforming the weights on every call pays from about so many input pixels on: it writes 400 bytes per pair
# of channels, at 3 GB/s, and saves 20 of 32 operations per pair and pixel, at 200 GFLOP/s.
_MANY_PIXELS = 2**12


def _packed(weight: Tensor, scale: Sequence[int], pixels: int, isa: str, threads: int) -> Tensor | None:
    """Return the transformed weights, or None where they are not kept and not worth it for one call."""
    kind, size = packing(weight, scale, isa)

    def pack() -> Tensor:
        packed, module = memory.empty((size // 4,)), native.cpu_module()
        parts = packed.chunk(len(phases(weight.shape[2], scale)))  # one size: each lacks a row and a column
        for part, (phase, kernel) in zip(parts, folded(weight, scale), strict=True):
            kernel = with_zero_taps(phase, kernel)
            module.winograd_pack(
                part.data_ptr(), native.describe(kernel), "float32", isa, threads, phase.zero_taps
            )
        return packed

    packed = find_packed(weight, kind, size, pack)
    return pack() if packed is None and pixels >= _MANY_PIXELS else packed


def packing(weight: Tensor, scale: Sequence[int], isa: str) -> tuple[object, int]:
    """Return what decides how the weights of all phases are packed, and how many bytes they take."""
    sizes = native.describe(_sizes_of_a_kernel(weight, scale))
    in_phases = phases(weight.shape[2], scale)
    floats = native.cpu_module().winograd_packed_floats(sizes, isa, in_phases[0].zero_taps)
    return ("upsample winograd", tuple(scale), isa), 4 * floats * len(in_phases)


def _sizes_of_a_kernel(weight: Tensor, scale: Sequence[int]) -> Tensor:
    """Return a tensor that has the sizes of a folded kernel with its zero taps."""
    return weight[:, :, : folded_kernel(weight.shape[2:], scale)[0]]


UPSAMPLE = Backend("cpu", _convolve, why_not)
