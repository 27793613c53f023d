"""Folding weights on the GPU, in one launch for all phases; and convolving one frame with what comes out.

Folded weights are not kept: whether the weights were changed since could only be seen by a checksum that the
host waits for.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton.language as tl
from torch import Tensor

from .....core.triton_launch import Launch
from .....core.triton_source import inlined, narrow, unspecialised, widen
from .call import Call
from .folds import Fold, single_frame

_BLOCK = 1024
_ALIGNMENT = 16


@inlined
def summed_taps(place, parity, KIND: tl.constexpr, SIZE: tl.constexpr):
    """Return (first tap, how many) along an axis of SIZE taps that are seen at a place of the window."""
    if KIND == "pairs":
        first = tl.where(place == 0, 1 - parity, 2 * parity)
        count = 2 - place
    elif KIND == "all":
        first = place
        count = place + SIZE
    else:
        first = place
        count = place * 0 + 1
    return first, count


@unspecialised
def fold_weights(
    w_ptr,
    out_ptr,
    channels: tl.int32,
    out_channels: tl.int32,
    out_phase: tl.int64,
    w_n: tl.int64,
    w_c: tl.int64,
    w_t: tl.int64,
    w_h: tl.int64,
    w_w: tl.int64,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TIME: tl.constexpr,
    SPACE: tl.constexpr,
    FRAME_TAPS: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of the folded kernel (Cout, taps, Cin) of one phase; see `Fold`."""
    PAIRED: tl.constexpr = "pairs" if SPACE else "none"
    ROWS: tl.constexpr = 2 if SPACE else KH
    COLUMNS: tl.constexpr = 2 if SPACE else KW
    MOST_T: tl.constexpr = KT if TIME == "all" else (2 if TIME == "pairs" else 1)
    MOST: tl.constexpr = 2 if SPACE else 1
    count = out_channels * channels * TAPS
    blocks = tl.cdiv(count, BLOCK)
    phase = tl.program_id(0) // blocks
    time_phase = phase // 4 if SPACE else phase
    j = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    c = j % channels
    tap = j // channels % TAPS
    n = j // (channels * TAPS)
    frame = tap // FRAME_TAPS
    place = tap % FRAME_TAPS
    low = place >= ROWS * COLUMNS
    place = place % (ROWS * COLUMNS)
    first_t, count_t = summed_taps(frame, time_phase, TIME, KT)
    first_h, count_h = summed_taps(place // COLUMNS, phase // 2 % 2, PAIRED, KH)
    first_w, count_w = summed_taps(place % COLUMNS, phase % 2, PAIRED, KW)
    at = w_ptr + n * w_n + c * w_c + first_t * w_t + first_h * w_h + first_w * w_w
    total = tl.zeros((BLOCK,), tl.float32)
    for t in range(MOST_T):
        for h in range(MOST):
            for w in range(MOST):
                seen = inside & (t < count_t) & (h < count_h) & (w < count_w)
                total += widen(tl.load(at + t * w_t + h * w_h + w * w_w, mask=seen, other=0.0))
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    part = narrow(total, dtype)
    if FRAME_TAPS > ROWS * COLUMNS:
        part = tl.where(low, narrow(total - widen(part), dtype), part)
    tl.store(out_ptr + phase.to(tl.int64) * out_phase + j, part, mask=inside)


def folded(weight: Tensor, fold: Fold) -> tuple[list[Tensor], Launch]:
    """Return the folded kernels, (Cout, Cin, taps, 1, 1) each, and the launch that writes them.

    Args:
        weight: Shape (Cout, Cin, kT, kH, kW), any strides.
        fold: What is summed.
    """
    out_channels, channels, *kernel_size = weight.shape
    size = out_channels * fold.taps * channels
    phase = -(-size // _ALIGNMENT) * _ALIGNMENT  # every phase begins at a multiple of 16 bytes
    storage = torch.empty((fold.phases, phase), dtype=weight.dtype, device=weight.device)
    kernels = storage[:, :size].unflatten(1, (out_channels, fold.taps, channels)).transpose(2, 3)
    arguments = {
        "w_ptr": weight,
        "out_ptr": storage,
        "channels": channels,
        "out_channels": out_channels,
        "out_phase": phase,
        **{f"w_{axis}": weight.stride(d) for d, axis in enumerate("ncthw")},
        **dict(zip(("KT", "KH", "KW"), kernel_size, strict=True)),
        "TIME": fold.time,
        "SPACE": fold.space,
        "FRAME_TAPS": fold.taps_of_frames[0],
        "TAPS": fold.taps,
        "BLOCK": _BLOCK,
    }
    launch = Launch(fold_weights, fold.phases * -(-size // _BLOCK), arguments)
    return [kernel[..., None, None] for kernel in kernels], launch


def fold_single_frame(call: Call) -> tuple[Call, list[Launch]]:
    """Return a call that sees one frame once where a call would see it through all taps, and its launches."""
    alone = call.x.shape[2] == 1 and call.causal > 0 and call.past is None
    if not (alone and call.temporal_mode == "replicate"):
        return call, []
    fold = single_frame(call.window, call.x.dtype)
    if fold is None:
        return call, []
    (kernel,), launch = folded(call.weight, fold)
    one = replace(
        call, weight=kernel, window=fold.window, frame_taps=fold.taps_of_frames[0], causal=0, front=0
    )
    return one, [launch]
