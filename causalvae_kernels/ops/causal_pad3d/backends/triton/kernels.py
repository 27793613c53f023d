"""The Triton kernel of causal padding, in place and out of place. Import it at the first call only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .....temporal.frame_buffer import body_of
from .plan import NUM_WARPS, PadPlan, plan_pad


@triton.jit
def _source_pixel(i, size, MODE: tl.constexpr):
    """Return the pixel of `size` shown at coordinate `i`: "replicate" or "reflect" (csrc/common/index.h)."""
    if MODE == "replicate":
        return tl.minimum(tl.maximum(i, 0), size - 1)
    else:
        i = tl.where(i < 0, -i, i)
        return tl.where(i >= size, 2 * (size - 1) - i, i)


@triton.jit
def _addresses(ptr, stride_h, stride_w, stride_c, h, w, c, LAST: tl.constexpr, ALIGN: tl.constexpr):
    """Return pointers to pixels (h, w) and channels c: (pixel, channel) if LAST, else (channel, pixel).

    The strides are in vectors of ALIGN items, but the innermost, which is 1, or any number if ALIGN is 0.
    """
    UNIT: tl.constexpr = ALIGN if ALIGN > 1 else 1
    row = h.to(tl.int64) * stride_h * UNIT
    if LAST:
        pixel = row + w.to(tl.int64) * stride_w * UNIT
        channel = c if ALIGN > 0 else c.to(tl.int64) * stride_c
        return (ptr + pixel)[:, None] + channel[None, :]
    else:
        pixel = row + (w if ALIGN > 0 else w.to(tl.int64) * stride_w)
        channel = c.to(tl.int64) * stride_c * UNIT
        return (ptr + channel)[:, None] + pixel[None, :]


@triton.jit
def _load(
    ptr, stride_h, stride_w, stride_c, h, w, c, pixels, channels,
    LAST: tl.constexpr, ALIGN: tl.constexpr, AS_LAST: tl.constexpr,
):  # fmt: skip
    """Load a tile, zeros where a mask is false, turned to (pixel, channel) if AS_LAST, else the other way."""
    at = _addresses(ptr, stride_h, stride_w, stride_c, h, w, c, LAST, ALIGN)
    mask = pixels[:, None] & channels[None, :] if LAST else channels[:, None] & pixels[None, :]
    tile = tl.load(at, mask=mask, other=0)
    if LAST != AS_LAST:
        tile = tl.trans(tile)
    return tile


_NUMBERS = [
    *(f"stride_{tensor}{axis}" for tensor in "oxs" for axis in "bcthw"),
    *("c_vectors", "frames", "height", "w_vectors", "padding", "top", "bottom", "left", "right"),
    *("c_tiles", "w_tiles", "column_tiles", "head_programs", "line_programs"),
]


# Numbers are not specialised: whether they allow wide accesses is said by the constants.
@triton.jit(do_not_specialize=_NUMBERS)
def pad_kernel(
    out_ptr, x_ptr, state_ptr,
    stride_ob: tl.int64, stride_oc: tl.int64, stride_ot: tl.int64, stride_oh: tl.int64, stride_ow: tl.int64,
    stride_xb: tl.int64, stride_xc: tl.int64, stride_xt: tl.int64, stride_xh: tl.int64, stride_xw: tl.int64,
    stride_sb: tl.int64, stride_sc: tl.int64, stride_st: tl.int64, stride_sh: tl.int64, stride_sw: tl.int64,
    c_vectors, frames, height, w_vectors, padding, top, bottom, left, right,
    c_tiles, w_tiles, column_tiles, head_programs, line_programs,
    TEMPORAL: tl.constexpr, SPATIAL: tl.constexpr, IN_PLACE: tl.constexpr, WIDTH_PADDED: tl.constexpr,
    OUT_LAST: tl.constexpr, X_LAST: tl.constexpr, STATE_LAST: tl.constexpr,
    OUT_ALIGN: tl.constexpr, X_ALIGN: tl.constexpr, STATE_ALIGN: tl.constexpr,
    VEC_C: tl.constexpr, VEC_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Write one tile of channels times pixels of `out`, taken from the frames or the state alone.

    Programs come in three sorts. The first `head_programs` write a piece of a row of the frames in front:
    with "replicate" the same piece of all of them, read once. Those up to `line_programs` write a piece of
    a row of a frame: any row, or in place those above and below it. The rest, in place only, write pixels
    left and right of a frame. Since nothing that is written is read, their order does not matter.
    """
    channels = c_vectors * VEC_C
    width = w_vectors * VEC_W
    padded_height = top + height + bottom
    padded_width = left + width + right if WIDTH_PADDED else width
    number = tl.program_id(0)
    is_head = number < head_programs
    rows = tl.where(is_head, padded_height, top + bottom if IN_PLACE else padded_height)
    if IN_PLACE and WIDTH_PADDED:
        is_column = number >= line_programs
        w_tiles = tl.where(is_column, column_tiles, w_tiles)
        rows = tl.where(is_column, 1, rows)
        number -= tl.where(is_column, line_programs, tl.where(is_head, 0, head_programs))
    else:
        number -= tl.where(is_head, 0, head_programs)

    tile = number % (w_tiles * c_tiles)
    line = number // (w_tiles * c_tiles)
    if OUT_LAST:
        c_tile, w_tile = tile % c_tiles, tile // c_tiles
    else:
        c_tile, w_tile = tile // w_tiles, tile % w_tiles
    h = line % rows
    if IN_PLACE:
        h = tl.where(is_head | (h < top), h, h + height)
    frame = line // rows
    sequence = tl.where(is_head, padding if TEMPORAL == "state" else 1, frames)
    t = frame % sequence
    b = (frame // sequence).to(tl.int64)

    c = c_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    in_channels = c < channels
    i = w_tile * BLOCK_W + tl.arange(0, BLOCK_W)
    w = i
    in_row = i < padded_width
    h = tl.broadcast_to(h, (BLOCK_W,))
    if IN_PLACE and WIDTH_PADDED:
        if is_column:
            side = i % (left + right)
            in_row = i < height * (left + right)
            w = tl.where(side < left, side, side + width)
            h = top + i // (left + right)

    y = h - top
    x = w - left if WIDTH_PADDED else w
    if SPATIAL != "zeros":
        y = _source_pixel(y, height, SPATIAL)
        x = _source_pixel(x, width, SPATIAL) if WIDTH_PADDED else x
    readable = in_row
    if SPATIAL == "zeros" or TEMPORAL == "zeros":
        readable = (
            readable & (y >= 0) & (y < (tl.where(is_head, 0, height) if TEMPORAL == "zeros" else height))
        )
    if SPATIAL == "zeros" and WIDTH_PADDED:
        readable = readable & (x >= 0) & (x < width)

    X_UNIT: tl.constexpr = X_ALIGN if X_ALIGN > 1 else 1
    x_ptr += (b * stride_xb + t * stride_xt) * X_UNIT
    if TEMPORAL == "state":
        STATE_UNIT: tl.constexpr = STATE_ALIGN if STATE_ALIGN > 1 else 1
        if is_head:
            state_ptr += (b * stride_sb + t * stride_st) * STATE_UNIT
            items = _load(
                state_ptr, stride_sh, stride_sw, stride_sc, y, x, c, readable, in_channels,
                STATE_LAST, STATE_ALIGN, OUT_LAST,
            )  # fmt: skip
        else:
            items = _load(
                x_ptr, stride_xh, stride_xw, stride_xc, y, x, c, readable, in_channels,
                X_LAST, X_ALIGN, OUT_LAST,
            )  # fmt: skip
    else:
        items = _load(
            x_ptr, stride_xh, stride_xw, stride_xc, y, x, c, readable, in_channels,
            X_LAST, X_ALIGN, OUT_LAST,
        )  # fmt: skip

    OUT_UNIT: tl.constexpr = OUT_ALIGN if OUT_ALIGN > 1 else 1
    at = _addresses(
        out_ptr + b * stride_ob * OUT_UNIT, stride_oh, stride_ow, stride_oc, h, w, c, OUT_LAST, OUT_ALIGN
    )  # fmt: skip
    mask = in_row[:, None] & in_channels[None, :] if OUT_LAST else in_channels[:, None] & in_row[None, :]
    first = tl.where(is_head, t, padding + t)
    end = tl.where(is_head, t + 1 if TEMPORAL == "state" else padding, padding + t + 1)
    if TEMPORAL == "replicate" and not IN_PLACE:
        first = tl.where(t == 0, 0, first)
    for out_frame in range(first, end):
        tl.store(at + out_frame * stride_ot * OUT_UNIT, items, mask=mask)


def launch_pad(
    out: Tensor,
    x: Tensor,
    state: Tensor | None,
    padding: int,
    halo: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
) -> None:
    """Write the padded frames into `out`, whatever its strides; one launch on the current stream."""
    launch_plan(plan_pad(out, x, state, padding, halo, temporal_mode, spatial_mode, in_place=False))


def launch_pad_(
    storage: Tensor,
    state: Tensor | None,
    padding: int,
    halo: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
) -> None:
    """Write head-room and halo of `storage`; one launch on the current stream, or none without a border."""
    body = body_of(storage, padding, halo)
    launch_plan(plan_pad(storage, body, state, padding, halo, temporal_mode, spatial_mode, in_place=True))


def launch_plan(plan: PadPlan) -> None:
    """Launch the kernel once, on the current stream of the tensors' device; waits for nothing."""
    if plan.programs == 0:
        return
    device = plan.tensors[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        pad_kernel[(plan.programs,)](
            *plan.tensors,
            *plan.strides,
            **plan.sizes,
            **plan.constants,
            num_warps=NUM_WARPS,
            num_stages=1,
            enable_fp_fusion=True,  # given, because Triton 3.9 warns where it is not
        )
