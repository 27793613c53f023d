"""Causal 3D convolution: each output frame sees its own and earlier input frames only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.checks import (
    check_choice,
    check_countable,
    check_float,
    check_like,
    check_operands,
    check_shape,
    check_tensor,
    check_video,
    int_tuple,
)
from ...core.dry_run import is_plain_tensor
from ...core.errors import InvalidInput
from ...core.op import Op
from ...core.overlap import check_destination
from ...core.precision import autocast_dtype, resolve_precision
from ...temporal.frame_buffer import FrameBuffer, body_of
from ...temporal.state import final_state
from ..causal_pad3d import causal_pad3d_, check_reflect, check_state
from ..causal_pad3d.spec import padded_shape
from . import aten, cpu, cuda, triton
from .reference import causal_conv3d__reference, causal_conv3d_reference, causal_conv3d_vjp
from .shape_class import measured, measured_into, packed_or_aten
from .spec import SPATIAL_MODES, TEMPORAL_MODES, output_size, paddings


def causal_conv3d(
    x: Tensor | FrameBuffer,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
    initial_state: Tensor | None = None,
    residual: Tensor | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve frames with a kernel that looks at the past only.

    Before the first frame stand P = dilation_t * (kT - 1) frames: `initial_state` if given, else what
    `temporal_mode` says. Calling it chunk by chunk, each chunk's final state being the next one's initial
    state, gives what one call gives; with a temporal stride, chunks other than the last must have a
    multiple of it in frames. Frames that come in equal pairs, doubled by an upsampler, are cheaper given
    once: `upsample_conv` with the scale (2, 1, 1).

    Args:
        x: Frames, shape (B, Cin, T, H, W), any strides; float32, bfloat16 or float16 (float64 in the
            reference and aten). Or a `FrameBuffer` of P frames of head-room: nothing is copied, its border is
            filled in place for a backend that does not read the state where it lies; a halo, if it has
            one, stands for the spatial padding, and a tail-room for as many of the P frames, which then
            stand behind the last frame and repeat it: the kernel looks ahead.
        weight: Shape (Cout, Cin, kT, kH, kW), kH and kW odd, dtype of `x`.
        bias: Shape (Cout,), dtype of `x`.
        stride: 1 or 2, for all or for (time, height, width).
        dilation: At least 1, for all or for (time, height, width).
        temporal_mode: "replicate" (the first frame), "zeros", or "valid" (nothing: `x` brings its past).
        spatial_mode: "zeros", "replicate", "reflect", each by dilation * (k - 1) / 2 pixels, or "valid".
        initial_state: The P frames before this chunk, shape (B, Cin, P, H, W).
        residual: Added to the output; its shape and dtype.
        return_final_state: Return the last P frames as well.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier "exact", "high" or "fast"; default: `use_precision()`, the environment, "high".

    Returns:
        The output, shape (B, Cout, T', H', W'), T' = (T - 1) // stride_t + 1 unless `temporal_mode` is
        "valid"; channels_last_3d if `x` or `weight` is, else contiguous. With `return_final_state` a tuple
        of it and the state, shape (B, Cin, P, H, W), which owns its memory. Under `torch.autocast` the
        dtypes are those that `torch.nn.functional.conv3d` gives.

    Raises:
        InvalidInput: Shapes, dtypes or words do not fit.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    frames = x.storage if isinstance(x, FrameBuffer) else x
    check_operands(_NAME, frames, weight, bias, initial_state, residual)
    given = {"temporal_mode": temporal_mode, "spatial_mode": spatial_mode, "initial_state": initial_state}
    choice = {"backend": backend, "precision": precision}
    steps = {"stride": stride, "dilation": dilation}
    x, seen, given = _source(_CONV, (), x, weight, bias, steps, given, choice, return_final_state)
    cast = autocast_dtype(x)
    late = None
    if cast is not None:
        choice["backend"] = packed_or_aten(weight, backend, weight.dtype != cast)
        if residual is not None and residual.dtype != cast:
            residual, late = None, residual
        x, weight, bias = x.to(cast), weight.to(cast), None if bias is None else bias.to(cast)
        if given["initial_state"] is not None:
            given["initial_state"] = given["initial_state"].to(cast)
    else:
        choice["backend"] = packed_or_aten(weight, backend)
    arguments = _arguments(x, weight, bias, residual=residual, **steps, **given)
    y = _CONV(*arguments, **choice)
    if late is not None:
        y = y + late
    if not return_final_state:
        return y
    frames = arguments[6][0] * (weight.shape[2] - 1)
    return y, final_state(seen, frames, initial_state=initial_state, temporal_mode=temporal_mode)


def causal_conv3d_(
    out: Tensor | FrameBuffer,
    x: Tensor | FrameBuffer,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
    initial_state: Tensor | None = None,
    residual: Tensor | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor | None:
    """Convolve as `causal_conv3d` does, into memory that is there already.

    Args:
        out: Where the output goes: a tensor of its shape and dtype, any strides, or a `FrameBuffer` with such
            a body. It shares no memory with what is read, but that `residual` may be `out` itself, element
            for element, on `reference`, `aten` and `cpu`.
        x: As in `causal_conv3d`, and so are all others.
        weight: See there.
        bias: See there.
        stride: See there.
        dilation: See there.
        temporal_mode: See there.
        spatial_mode: See there.
        initial_state: See there.
        residual: See there.
        return_final_state: Return the last P frames.
        backend: See there. The backend `aten` convolves into a fresh tensor and copies.
        precision: See there.

    Returns:
        None, or the final state.

    Raises:
        InvalidInput: Shapes, dtypes or words do not fit; `out` overlaps itself or what is read; a gradient
            would be lost; autocast would change the dtype.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    out = out.body if isinstance(out, FrameBuffer) else out
    check_tensor(f"{_NAME}_", "out", out, "(B, Cout, T', H', W')")
    frames = x.storage if isinstance(x, FrameBuffer) else x
    check_operands(_NAME, frames, weight, bias, initial_state, residual)
    given = {"temporal_mode": temporal_mode, "spatial_mode": spatial_mode, "initial_state": initial_state}
    choice = {"backend": packed_or_aten(weight, backend), "precision": precision}
    steps = {"stride": stride, "dilation": dilation}
    x, seen, given = _source(_CONV_, (out,), x, weight, bias, steps, given, choice, return_final_state)
    arguments = _arguments_into(out, x, weight, bias, residual=residual, **steps, **given)
    _CONV_(*arguments, **choice)
    if not return_final_state:
        return None
    frames = arguments[7][0] * (weight.shape[2] - 1)
    return final_state(seen, frames, initial_state=initial_state, temporal_mode=temporal_mode)


def reads_two_sources(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
    precision: str | None = None,
    **options: Any,
) -> bool:
    """Tell whether this call of `causal_conv3d` reads `x` and its state where they lie, copying neither.

    Then the state may stay apart from the frames, and a producer of `x` needs no head-room in front of it.
    """
    if autocast_dtype(x) is not None:
        return False  # a copy is made anyway
    arguments = _arguments(x, weight, bias, **options)
    return _reads_apart(_CONV, arguments, packed_or_aten(weight, backend), precision)


def adds_in_place(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
    precision: str | None = None,
    **options: Any,
) -> bool:
    """Tell whether in this call the `residual` of `causal_conv3d_` may be `out` itself."""
    arguments = _arguments(x, weight, bias, **options)
    return _CONV.choose(arguments, packed_or_aten(weight, backend), precision).adds_in_place


def _reads_apart(op: Op, arguments: tuple[Any, ...], backend: str | None, precision: str | None) -> bool:
    """Whether the backend that this call takes reads the state where it lies."""
    return op.choose(arguments, backend, precision).two_sources(*arguments, resolve_precision(precision))


def _source(
    op: Op,
    destination: tuple[Tensor, ...],
    x: Tensor | FrameBuffer,
    weight: Tensor,
    bias: Tensor | None,
    steps: dict[str, Any],
    given: dict[str, Any],
    choice: dict[str, Any],
    return_final_state: bool,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return what the operator reads, what the final state is taken of, and the modes that are left."""
    if not isinstance(x, FrameBuffer):
        return x, x, given
    if return_final_state and x.tail_room:
        raise InvalidInput(
            f"{_NAME}: got return_final_state with a FrameBuffer of tail_room {x.tail_room}, expected none: "
            "what looks ahead has no state that the next chunk could start from"
        )
    _check_room(x, weight, steps["dilation"], given["temporal_mode"], given["spatial_mode"])
    if _may_read_apart(x, given):
        arguments = (*destination, *_arguments(x.body, weight, bias, **steps, **given))
        if _reads_apart(op, arguments, **choice):
            return x.body, x.body, given
    seen = body_of(x.storage, 0, x.halo)  # with the head-room: never too short for the state
    return x.storage, seen, _fill(x, backend=choice["backend"], **given)


def _check_room(
    buffer: FrameBuffer,
    weight: Tensor,
    dilation: int | Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
) -> None:
    check_video(_NAME, "weight", weight)
    frames = int_tuple(_NAME, "dilation", dilation, 3)[0] * (weight.shape[2] - 1)
    if buffer.head_room + buffer.tail_room != frames:
        raise InvalidInput(
            f"{_NAME}: the FrameBuffer has head_room {buffer.head_room} and tail_room {buffer.tail_room}, "
            f"expected dilation * (kT - 1) = {frames} frames in all"
        )
    if frames and temporal_mode == "valid":
        raise InvalidInput(
            f"{_NAME}: the FrameBuffer has head_room {frames} and temporal_mode is 'valid', expected a mode "
            "that says what the head-room holds: 'replicate' or 'zeros'"
        )
    if any(buffer.halo) and spatial_mode == "valid":
        raise InvalidInput(
            f"{_NAME}: the FrameBuffer has halo {buffer.halo} and spatial_mode is 'valid', expected a mode "
            "that says what the halo holds: 'zeros', 'replicate' or 'reflect'"
        )


def _may_read_apart(buffer: FrameBuffer, given: dict[str, Any]) -> bool:
    """Whether a backend that reads body and state where they lie may do so: the border is left as it is."""
    if (
        any(buffer.halo)
        or buffer.tail_room
        or not is_plain_tensor(buffer.storage)
        or torch.compiler.is_compiling()
    ):
        return False
    if autocast_dtype(buffer.storage) is not None:
        return False
    past = given["initial_state"]
    # With a gradient it is refused where the border is filled, whatever the backend.
    return not (
        torch.is_grad_enabled()
        and (buffer.storage.requires_grad or (past is not None and past.requires_grad))
    )


def _fill(
    buffer: FrameBuffer,
    *,
    temporal_mode: str,
    spatial_mode: str,
    initial_state: Tensor | None,
    backend: str | None,
) -> dict[str, Any]:
    """Fill the border; return the modes of the convolution over the storage."""
    if initial_state is not None and autocast_dtype(buffer.storage) is not None:
        initial_state = initial_state.to(buffer.storage.dtype)
    causal_pad3d_(
        buffer,
        temporal_mode=temporal_mode,
        spatial_mode=spatial_mode if any(buffer.halo) else "zeros",
        initial_state=initial_state,
        backend=backend,
    )
    mode = "valid" if any(buffer.halo) else spatial_mode
    return {"temporal_mode": "valid", "spatial_mode": mode, "initial_state": None}


def _arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
    initial_state: Tensor | None = None,
    residual: Tensor | None = None,
    return_final_state: bool = False,
) -> tuple[Any, ...]:
    """Check everything; return the operator's arguments."""
    check_video(_NAME, "x", x)
    check_float(_NAME, "x", x)
    check_video(_NAME, "weight", weight)
    check_like(_NAME, "weight", weight, "x", x)
    check_choice(_NAME, "temporal_mode", temporal_mode, TEMPORAL_MODES)
    check_choice(_NAME, "spatial_mode", spatial_mode, SPATIAL_MODES)
    stride = int_tuple(_NAME, "stride", stride, 3)
    dilation = int_tuple(_NAME, "dilation", dilation, 3)
    out_channels, in_channels, *kernel_size = weight.shape
    if x.shape[1] != in_channels:
        raise InvalidInput(
            f"{_NAME}: x has {x.shape[1]} channels and weight, shape {tuple(weight.shape)}, expects "
            f"{in_channels}"
        )
    if kernel_size[1] % 2 == 0 or kernel_size[2] % 2 == 0:
        raise InvalidInput(f"{_NAME}: kernel size is {tuple(kernel_size)}, expected odd height and width")
    if not all(s in (1, 2) for s in stride) or min(dilation) < 1:
        raise InvalidInput(
            f"{_NAME}: stride is {stride} and dilation {dilation}, expected strides of 1 or 2 and "
            "dilations >= 1"
        )
    if bias is not None:
        check_shape(_NAME, "bias", bias, (out_channels,), "(Cout,)")
        check_like(_NAME, "bias", bias, "x", x)
    pad = paddings(kernel_size, dilation, temporal_mode, spatial_mode)
    if temporal_mode == "valid" and initial_state is not None:
        raise InvalidInput(
            f"{_NAME}: got an initial_state with temporal_mode 'valid', expected 'replicate' or 'zeros'"
        )
    check_state(_NAME, initial_state, x, pad.causal)
    check_reflect(_NAME, x, pad.explicit, pad.explicit_mode)
    check_countable(_NAME, "the padded frames", padded_shape(x.shape, pad.causal, pad.sides), x.dtype)
    size = output_size(x.shape, kernel_size, stride, dilation, temporal_mode, spatial_mode)
    if min(size) < 1:
        raise InvalidInput(
            f"{_NAME}: x of (T, H, W) {tuple(x.shape[2:])} is smaller than the kernel {tuple(kernel_size)} "
            f"with dilation {dilation}; expected more frames or pixels, or a padding mode other than 'valid'"
        )
    if residual is not None:
        check_shape(_NAME, "residual", residual, (x.shape[0], out_channels, *size), "(B, Cout, T', H', W')")
        check_like(_NAME, "residual", residual, "x", x)
    return x, weight, bias, initial_state, residual, stride, dilation, temporal_mode, spatial_mode


def _arguments_into(out: Tensor, x: Tensor, weight: Tensor, *others: Any, **keywords: Any) -> tuple[Any, ...]:
    """Check everything; return the operator's arguments."""
    arguments = _arguments(x, weight, *others, **keywords)
    x, weight, bias, initial_state, residual, stride, dilation, temporal_mode, spatial_mode = arguments
    name = f"{_NAME}_"
    size = output_size(x.shape, weight.shape[2:], stride, dilation, temporal_mode, spatial_mode)
    check_shape(name, "out", out, (x.shape[0], weight.shape[0], *size), "(B, Cout, T', H', W')")
    check_like(name, "out", out, "x", x)
    tensors = (out, x, weight, bias, initial_state, residual)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise InvalidInput(
            f"{name}: got a tensor that requires a gradient, expected none, because writing in place would "
            f"lose it; use {_NAME}"
        )
    cast = autocast_dtype(x)
    if cast not in (None, x.dtype):
        raise InvalidInput(
            f"{name}: got {x.dtype} tensors under autocast to {cast}, expected no autocast; use {_NAME}"
        )
    reads = {"x": x, "weight": weight, "bias": bias, "initial_state": initial_state, "residual": residual}
    check_destination(name, "out", out, reads, may_be_out=("residual",))
    return out, *arguments


_NAME = "causal_conv3d"
_CONV = Op(
    _NAME,
    reference=causal_conv3d_reference,
    prepare=_arguments,
    backends=(aten.CONV, cpu.CONV, triton.CONV, cuda.CONV),
    order=("aten", "reference"),
    measured=measured,
    layout=("x", "weight"),
    vjp=causal_conv3d_vjp,
    saves=("x", "weight", "initial_state"),
)
_CONV_ = Op(
    f"{_NAME}_",
    reference=causal_conv3d__reference,
    prepare=_arguments_into,
    backends=(aten.CONV_, cpu.CONV_, triton.CONV_, cuda.CONV_),
    order=("aten", "reference"),
    measured=measured_into,
    mutates=("out",),
)
