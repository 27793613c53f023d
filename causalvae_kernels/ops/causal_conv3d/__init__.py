"""Causal 3D convolution: each output frame sees its own and earlier input frames only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.checks import check_choice, check_float, check_like, check_shape, check_video, int_tuple
from ...core.errors import InvalidInput
from ...core.op import Op
from ...core.precision import autocast_dtype
from ...core.selection import requested_backend
from ...temporal.frame_buffer import FrameBuffer, body_of
from ...temporal.state import final_state
from ..causal_pad3d import causal_pad3d_, check_reflect, check_state
from . import aten, cpu, cuda, triton
from .reference import causal_conv3d_reference, causal_conv3d_vjp
from .shape_class import measured, why_packed_anew
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
            one, stands for the spatial padding.
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
    given = {"temporal_mode": temporal_mode, "spatial_mode": spatial_mode, "initial_state": initial_state}
    seen = x
    if isinstance(x, FrameBuffer):
        _check_head_room(x, weight, dilation, temporal_mode, spatial_mode)
        if _reads_two_sources(x, weight, bias, stride, dilation, given, backend, precision):
            seen = x = x.body
        else:
            seen = body_of(x.storage, 0, x.halo)  # with the head-room: never too short for the state
            given = _fill(x, backend=backend, **given)
            x = x.storage
    cast = autocast_dtype(x)
    late = None
    anew = (cast is not None and weight.dtype != cast) or why_packed_anew(weight) is not None
    if anew and requested_backend(backend)[0] == "auto":
        backend = "aten"  # weights that are cast or trained would be packed on every call
    if cast is not None:
        if residual is not None and residual.dtype != cast:
            residual, late = None, residual
        x, weight, bias = x.to(cast), weight.to(cast), None if bias is None else bias.to(cast)
        if given["initial_state"] is not None:
            given["initial_state"] = given["initial_state"].to(cast)
    arguments = _arguments(x, weight, bias, stride=stride, dilation=dilation, residual=residual, **given)
    y = _CONV(*arguments, backend=backend, precision=precision)
    if late is not None:
        y = y + late
    if not return_final_state:
        return y
    frames = arguments[6][0] * (weight.shape[2] - 1)
    return y, final_state(seen, frames, initial_state=initial_state, temporal_mode=temporal_mode)


def _check_head_room(
    buffer: FrameBuffer,
    weight: Tensor,
    dilation: int | Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
) -> None:
    check_video(_NAME, "weight", weight)
    frames = int_tuple(_NAME, "dilation", dilation, 3)[0] * (weight.shape[2] - 1)
    if buffer.head_room != frames:
        raise InvalidInput(
            f"{_NAME}: the FrameBuffer has head_room {buffer.head_room}, expected "
            f"dilation * (kT - 1) = {frames}"
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


def _reads_two_sources(
    buffer: FrameBuffer,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    dilation: int | Sequence[int],
    given: dict[str, Any],
    backend: str | None,
    precision: str | None,
) -> bool:
    """Whether the backend reads body and state where they lie: then the border is left as it is."""
    if any(buffer.halo) or type(buffer.storage) is not Tensor or torch.compiler.is_compiling():
        return False
    if autocast_dtype(buffer.storage) is not None:
        return False
    past = given["initial_state"]
    if torch.is_grad_enabled() and (
        buffer.storage.requires_grad or (past is not None and past.requires_grad)
    ):
        return False  # refused where the border is filled, whatever the backend
    arguments = _arguments(buffer.body, weight, bias, stride=stride, dilation=dilation, **given)
    return _CONV.choose(arguments, backend, precision).two_sources


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
