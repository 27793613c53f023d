"""Causal padding of video: frames in front of the first one, pixels around each, in one write."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.checks import (
    check_choice,
    check_countable,
    check_like,
    check_shape,
    check_video,
    int_tuple,
)
from ...core.errors import InvalidInput
from ...core.op import Op
from ...core.overlap import check_destination, is_same_memory, share_memory
from ...temporal.frame_buffer import FrameBuffer, body_of
from .backends import aten, cpu, cuda, triton
from .measurements import measured, measured_in_place
from .reference import causal_pad3d__reference, causal_pad3d_reference, causal_pad3d_vjp
from .spec import SPATIAL_MODES, TEMPORAL_MODES, BorderArgs, PadArgs


def causal_pad3d(
    x: Tensor,
    causal_padding: int,
    spatial_padding: int | Sequence[int] = 0,
    *,
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
    initial_state: Tensor | None = None,
    out: Tensor | FrameBuffer | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor | FrameBuffer:
    """Pad frames in front and pixels around.

    Time is padded first, then space, so the added frames get their own border.

    Args:
        x: Frames, shape (B, C, T, H, W), any dtype, any strides.
        causal_padding: Frames to put in front; a causal convolution needs dilation * (kT - 1).
        spatial_padding: Pixels: one number, (height, width), or (top, bottom, left, right).
        temporal_mode: What stands in front of a first chunk: "replicate" (its first frame) or "zeros".
        spatial_mode: "zeros", "replicate" or "reflect".
        initial_state: The frames in front, shape (B, C, causal_padding, H, W); overrides `temporal_mode`.
        out: Destination of the padded frames: a tensor of their shape and dtype, any strides, or a
            `FrameBuffer` with such a body. It must not share memory with what is read.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier; every backend of this op is exact.

    Returns:
        Shape (B, C, causal_padding + T, top + H + bottom, left + W + right), dtype of `x`;
        channels_last_3d if `x` is, else contiguous; or `out`.

    Raises:
        InvalidInput: Shapes, dtypes or options are invalid; `out` overlaps itself or what is read, or a
            gradient would be lost.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    options = (causal_padding, spatial_padding, temporal_mode, spatial_mode)
    y = _PAD.call((x, initial_state), options, out, backend, precision)
    return y if out is None else out


def causal_pad3d_(
    buffer: FrameBuffer,
    *,
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
    initial_state: Tensor | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> None:
    """Fill the border of a `FrameBuffer` in place; its body is only read.

    Args:
        buffer: The frames, with `head_room` frames in front and a `halo` around; frames of its `tail_room`
            repeat the last one.
        temporal_mode: As in `causal_pad3d`.
        spatial_mode: As in `causal_pad3d`.
        initial_state: As in `causal_pad3d`, with `head_room` frames.
        backend: As in `causal_pad3d`.
        precision: As in `causal_pad3d`.

    Raises:
        InvalidInput: Shapes, dtypes or options are invalid, `initial_state` lies under the border and not in
            its place there, or a gradient would be lost.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    args, storage = _border_arguments(
        buffer, temporal_mode=temporal_mode, spatial_mode=spatial_mode, initial_state=initial_state
    )
    _PAD_(args, storage, backend=backend, precision=precision)
    if buffer.tail_room:
        frames = buffer.storage.shape[2] - buffer.tail_room
        # With its halo: space is padded after time.
        buffer.storage[:, :, frames:].copy_(buffer.storage[:, :, frames - 1 : frames])


def _pad_arguments(
    x: Tensor,
    causal_padding: int,
    spatial_padding: int | Sequence[int] = 0,
    *,
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
    initial_state: Tensor | None = None,
    out: Tensor | FrameBuffer | None = None,
) -> tuple[PadArgs, Tensor | None]:
    args = _checked(PadArgs(x, initial_state, causal_padding, spatial_padding, temporal_mode, spatial_mode))
    return args, _PAD.check_out(out, args)


def _checked(call: PadArgs) -> PadArgs:
    """Check everything; return the record that backends take."""
    x, state, causal_padding, spatial_padding, temporal_mode, spatial_mode = call
    check_video("causal_pad3d", "x", x)
    halo = four_sides("causal_pad3d", spatial_padding)
    _check_padding("causal_pad3d", x, causal_padding, halo, temporal_mode, spatial_mode, state)
    args = call._replace(spatial_padding=halo)
    check_countable("causal_pad3d", "the padded frames", args.out_shape, x.dtype)
    return args


def _border_arguments(
    buffer: FrameBuffer,
    *,
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
    initial_state: Tensor | None = None,
) -> tuple[BorderArgs, Tensor]:
    if not isinstance(buffer, FrameBuffer):
        raise InvalidInput(
            f"causal_pad3d_: got a {type(buffer).__name__}, expected a FrameBuffer; causal_pad3d takes "
            "tensors"
        )
    body, frames, halo = buffer.body, buffer.head_room, buffer.halo
    _check_padding("causal_pad3d_", body, frames, halo, temporal_mode, spatial_mode, initial_state)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (buffer.storage, initial_state)
    ):
        raise InvalidInput(
            "causal_pad3d_: got a tensor that requires a gradient, expected none, because writing in place "
            "would lose it; use causal_pad3d"
        )
    storage = buffer.without_tail
    _check_memory(storage, initial_state, frames, halo)
    return BorderArgs(initial_state, frames, halo, temporal_mode, spatial_mode), storage


def _check_memory(storage: Tensor, state: Tensor | None, frames: int, halo: Sequence[int]) -> None:
    """Require a state that is not overwritten before it is read, or stands in its place already."""
    check_destination("causal_pad3d_", "the buffer", storage, {})
    if state is None or not share_memory(storage, state):
        return
    if is_same_memory(body_of(storage, 0, halo)[:, :, :frames], state):
        return
    top, bottom, left, right = halo
    _, _, _, height, width = storage.shape
    border = (
        storage[:, :, :frames],
        storage[:, :, :, :top],
        storage[:, :, :, height - bottom :],
        storage[..., :left],
        storage[..., width - right :],
    )
    for part in border:
        check_destination("causal_pad3d_", "the border of the buffer", part, {"initial_state": state})


def four_sides(op: str, spatial_padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Turn one number, (height, width) or (top, bottom, left, right) into the latter.

    Raises:
        InvalidInput: It is none of these, or negative.
    """
    if isinstance(spatial_padding, Sequence) and len(spatial_padding) == 2:
        height, width = spatial_padding
        spatial_padding = (height, height, width, width)
    sides = int_tuple(op, "spatial_padding", spatial_padding, 4)
    if min(sides) < 0:
        raise InvalidInput(f"{op}: spatial_padding is {sides}, expected nothing negative")
    return sides


def _check_padding(
    op: str,
    x: Tensor,
    causal_padding: int,
    sides: tuple[int, ...],
    temporal_mode: str,
    spatial_mode: str,
    initial_state: Tensor | None,
) -> None:
    check_choice(op, "temporal_mode", temporal_mode, TEMPORAL_MODES)
    check_choice(op, "spatial_mode", spatial_mode, SPATIAL_MODES)
    if not isinstance(causal_padding, int) or causal_padding < 0:
        raise InvalidInput(f"{op}: causal_padding is {causal_padding!r}, expected a number of frames >= 0")
    check_state(op, initial_state, x, causal_padding)
    check_reflect(op, x, sides, spatial_mode)


def check_state(op: str, initial_state: Tensor | None, x: Tensor, frames: int) -> None:
    """Require a state of `frames` frames that fits `x`."""
    if initial_state is None:
        return
    batch, channels, _, height, width = x.shape
    check_shape(
        op, "initial_state", initial_state, (batch, channels, frames, height, width), "(B, C, frames, H, W)"
    )
    check_like(op, "initial_state", initial_state, "x", x)


def check_reflect(op: str, x: Tensor, sides: Sequence[int], spatial_mode: str) -> None:
    """Require that a reflection stays inside the frame."""
    height, width = x.shape[3:]
    top, bottom, left, right = sides
    if spatial_mode == "reflect" and (max(top, bottom) >= height or max(left, right) >= width):
        raise InvalidInput(
            f"{op}: spatial_mode 'reflect' with padding {tuple(sides)} on frames of {height}x{width}, "
            f"expected less padding than pixels; use 'replicate'"
        )


_PAD = Op(
    "causal_pad3d",
    args=PadArgs,
    reference=causal_pad3d_reference,
    check=_checked,
    prepare=_pad_arguments,
    backends=(aten.PAD, cpu.PAD, triton.PAD, cuda.PAD),
    measured=measured,
    layout=("x",),
    vjp=causal_pad3d_vjp,
)
_PAD_ = Op(
    "causal_pad3d_",
    args=BorderArgs,
    reference=causal_pad3d__reference,
    prepare=_border_arguments,
    backends=(aten.PAD_, cpu.PAD_, triton.PAD_, cuda.PAD_),
    measured=measured_in_place,
)
