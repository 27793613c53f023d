"""Upsampling convolution by the CUDA module: for each phase the convolution of `causal_conv3d`, twice.

The kernel knows rectangular windows, and each pixel once: the low parts of the folded weights are convolved
first, into the output, and the high parts behind them take that as their residual. So the digits of the folds
are kept, and most of the multiplications that folding saves are spent on them (docs/cuda.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.op import Backend
from ..causal_conv3d.cuda import aligned, launch, readable, rows_of_taps, why_not_call, writes_windows
from ..causal_conv3d.folds import ALL, PAIRS, Fold
from ..causal_pad3d.cuda import padded_copy
from ..causal_pad3d.cuda import why_not as why_not_padded
from .gpu_plan import Part, plan
from .spec import output_size
from .traffic import moves_in_two_parts

_LAST = torch.channels_last_3d


def _why_not(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    scale: Sequence[int],
    first_chunk: bool,
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> str | None:
    # Every part has as many output pixels as there are input pixels, or fewer.
    reason = why_not_call(x, weight, x.shape[0] * x.shape[2] * x.shape[3] * x.shape[4], precision)
    if reason is not None:
        return reason
    if not writes_windows(x.device):
        return (
            "the pixels that a launch writes lie two apart in the output, and the kernel for 8.x writes "
            "pixels that follow each other"
        )
    return why_not_padded(x, initial_state, weight.shape[2] - 1, (1, 1, 1, 1))


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
    out = torch.empty(
        (x.shape[0], weight.shape[0], *output_size(x.shape, scale, first_chunk)),
        dtype=x.dtype,
        device=x.device,
        memory_format=_LAST,
    )
    found = plan(out, x, weight, initial_state, scale, first_chunk, temporal_mode)
    copied = found.causal if initial_state is not None or temporal_mode == "replicate" else 0
    halo = int(spatial_mode == "replicate")
    if copied or halo or not readable(x):
        past = initial_state if copied else None
        x = padded_copy(
            x, past, copied, (halo,) * 4, temporal_mode if copied else "zeros", spatial_mode, _LAST
        )
    bias = None if bias is None else aligned(bias.contiguous())
    if found.fold is None:
        kernels = [(rows_of_taps(weight), None)] * len(found.parts)
    else:
        kernels = split_kernels(weight, found.fold)
    for part in found.parts:
        high, low = kernels[part.phase]
        first = _earliest(part, high)
        if low is not None:
            skipped, low = _summed_frames(low, found.fold, part.phase)
            later = (first[0] + skipped, *first[1:])
            _run(part.out, x, low, None, None, later, (copied, halo, halo))
        _run(part.out, x, high, bias, None if low is None else part.out, first, (copied, halo, halo))
    for to, source in found.copies:
        to.copy_(source)
    return out


def split_kernels(weight: Tensor, fold: Fold) -> list[tuple[Tensor, Tensor]]:
    """Return (high, low) of each phase: the two parts of its folded kernel, channels innermost.

    Of a tap that is no sum the low part is zero. All phases are folded together, to have few small launches.
    """
    sums = weight.float()
    if fold.time == ALL:
        sums = sums.sum(2, keepdim=True)
    sums = _pairs(sums, 2) if fold.time == PAIRS else sums.unsqueeze(2)
    for dim in (4, 6):
        sums = _pairs(sums, dim) if fold.space else sums.unsqueeze(dim)
    sums = sums.permute(2, 4, 6, 0, 3, 5, 7, 1).contiguous().flatten(0, 2)
    high = sums.to(weight.dtype)
    low = (sums - high).to(weight.dtype)
    return [tuple(t.permute(0, 4, 1, 2, 3) for t in both) for both in zip(high, low, strict=True)]


def _pairs(weight: Tensor, dim: int) -> Tensor:
    """Return the kernels of even and of odd outputs, (2, 2) in place of an axis of three taps."""
    first, middle, last = weight.unbind(dim)
    return torch.stack((first, middle + last, first + middle, last), dim).unflatten(dim, (2, 2))


def _summed_frames(low: Tensor, fold: Fold, phase: int) -> tuple[int, Tensor]:
    """Return how many frames of a low part are left out because they hold no sum, and the others."""
    if fold.space or fold.time != PAIRS:
        return 0, low
    frame = 1 - fold.parities(phase)[0]
    return frame, low[:, :, frame : frame + 1]


def _earliest(part: Part, kernel: Tensor) -> tuple[int, ...]:
    """Return (frame, row, column) of the first pixel that the first output sees."""
    back = (min(0, (k - 1) * d) for k, d in zip(kernel.shape[2:], part.dilation, strict=True))
    return tuple(b - n for b, n in zip(back, (part.front, part.top, part.left), strict=True))


def _run(
    out: Tensor,
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    first: Sequence[int],
    border: Sequence[int],
) -> None:
    """Convolve what a part sees of `x`.

    Args:
        out: The part's window.
        x: The frames behind and between their border.
        kernel: Channels innermost.
        bias: Or None.
        residual: Or None.
        first: (frame, row, column) of the first pixel that the first output sees.
        border: Frames in front of the first frame, rows above, columns before.
    """
    # Taps that see nothing but zeros in front of the first frame are left out.
    skipped = max(0, -(border[0] + first[0] + out.shape[2] - 1))
    kernel, first = kernel[:, :, skipped:], (first[0] + skipped, *first[1:])
    before, after = [], []
    for dim, taps, start in zip((2, 3, 4), kernel.shape[2:], first, strict=True):
        start += border[dim - 2]
        end = start + out.shape[dim] + taps - 1
        before.append(max(0, -start))
        after.append(max(0, end - x.shape[dim]))
        x = x.narrow(dim, max(0, start), min(end, x.shape[dim]) - max(0, start))
    # Every second frame of an odd number of them ends beyond where the next batch entry begins, which the
    # module does not take for a window: one entry after another.
    entries = [slice(None)] if readable(out) else [slice(b, b + 1) for b in range(out.shape[0])]
    for entry in entries:
        added = None if residual is None else residual[entry]
        launch(out[entry], x[entry], kernel, bias, added, (1, 1, 1), (1, 1, 1), before, after)


UPSAMPLE = Backend("cuda", _convolve, _why_not, moves=moves_in_two_parts)
