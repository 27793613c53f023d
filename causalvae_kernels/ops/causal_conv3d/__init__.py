"""Causal 3D convolution: each output frame sees its own and earlier input frames only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.backend import Backend
from ...core.bind import Bound
from ...core.checks import (
    check_choice,
    check_countable,
    check_float,
    check_like,
    check_operands,
    check_shape,
    check_video,
    int_tuple,
)
from ...core.dry_run import is_plain_tensor
from ...core.errors import InvalidInput
from ...core.op import Op
from ...core.precision import autocast_dtype, check_no_autocast, resolve_precision
from ...temporal.frame_buffer import FrameBuffer, body_of
from ...temporal.state import final_state
from ..causal_pad3d import causal_pad3d_, check_reflect, check_state
from ..causal_pad3d.spec import padded_shape
from .backends import aten, cpu, cuda, triton
from .measurements import measured, packed_or_aten
from .reference import causal_conv3d_reference, causal_conv3d_vjp
from .spec import SPATIAL_MODES, TEMPORAL_MODES, ConvArgs, output_size, paddings


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
    out: Tensor | FrameBuffer | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> Tensor | FrameBuffer | tuple[Tensor | FrameBuffer, Tensor]:
    """Convolve frames with a kernel that sees past frames only.

    P = dilation_t * (kT - 1) frames precede the first one: `initial_state` if given, else what
    `temporal_mode` says. Calling it chunk by chunk, with each chunk's final state as the next one's initial
    state, equals one call; with a temporal stride, chunks other than the last must have a
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
        out: Destination of the output: a tensor of its shape and dtype, any strides, or a `FrameBuffer` with
            such a body. It must not share memory with what is read, except that `residual` may be `out`
            itself on `reference`, `aten` and `cpu`. The backend `aten` convolves into a fresh tensor
            and copies.
        backend: Name of the backend; default: `use_backend()`, the environment, the default order.
        precision: Tier "exact" or "high"; default: `use_precision()`, the environment, "high".

    Returns:
        The output, shape (B, Cout, T', H', W'), T' = (T - 1) // stride_t + 1 unless `temporal_mode` is
        "valid"; channels_last_3d if `x` or `weight` is, else contiguous; or `out`. With `return_final_state`
        a tuple of it and the state, shape (B, Cin, P, H, W), which owns its memory. Under `torch.autocast`
        the dtypes are those that `torch.nn.functional.conv3d` gives.

    Raises:
        InvalidInput: Shapes, dtypes or options are invalid; `out` overlaps itself or what is read; with `out`
            a gradient would be lost, or autocast would change the dtype.
        BackendUnavailable: The backend asked for cannot run this call.
    """
    tensors = (x, weight, bias, initial_state, residual)
    options = (stride, dilation, temporal_mode, spatial_mode)
    to = out.body if out.__class__ is FrameBuffer else out
    choice = (to, backend, precision)
    if x.__class__ is FrameBuffer:
        tensors, options, x, bound = _read_from(x, tensors, options, return_final_state, *choice)
    else:
        bound = _CONV.bindings.find(tensors, options, *choice)
    if bound is None:
        y = _watched(ConvArgs(*tensors, *options), *choice)
    else:
        y = bound.run(tensors, to)
        dilation = bound.options[1]
    y = y if out is None else out
    if not return_final_state:
        return y
    steps = dilation if dilation.__class__ is tuple else int_tuple(_NAME, "dilation", dilation, 3)
    frames = steps[0] * (weight.shape[2] - 1)
    return y, final_state(x, frames, initial_state=initial_state, temporal_mode=temporal_mode)


def _watched(call: ConvArgs, out: Tensor | None, backend: str | None, precision: str | None) -> Tensor | None:
    """Call the operator where a compiler, autograd, autocast or a mode sees it."""
    check_operands(_NAME, *call[:5])
    cast, late = autocast_dtype(call.x), None
    if out is not None:
        check_no_autocast(_NAME, call.x)
    backend = packed_or_aten(call.weight, backend, cast is not None and call.weight.dtype != cast)
    if cast is not None and out is None:
        if call.residual is not None and call.residual.dtype != cast:
            call, late = call._replace(residual=None), call.residual
        operands = zip(_CAST, call, strict=False)
        call = call._replace(**{n: t.to(cast) for n, t in operands if t is not None})
    args = _checked(call)
    y = _CONV(args, _CONV.check_out(out, args), backend=backend, precision=precision)
    return y if late is None else y + late


# What autocast casts, by the places of the record; a residual is added in its own dtype.
_CAST = ("x", "weight", "bias", "initial_state")


def reads_two_sources(
    *arguments: Any,
    out: Tensor | None = None,
    backend: str | None = None,
    precision: str | None = None,
    **keywords: Any,
) -> bool:
    """Tell whether this call of `causal_conv3d` reads `x` and its state where they lie, copying neither.

    Then the state may stay apart from the frames, and a producer of `x` needs no head-room in front of it.
    """
    call = ConvArgs(*arguments, **keywords)
    bound = _CONV.bindings.find(call[:5], call[5:], out, backend, precision)
    if bound is not None:
        return bound.reads_state_in_place
    if autocast_dtype(call.x) is not None:
        return False  # a copy is made anyway
    args, chosen = _choose(call, out, backend, precision)
    return chosen.two_sources(args, resolve_precision(precision))


def adds_in_place(
    *arguments: Any, backend: str | None = None, precision: str | None = None, **keywords: Any
) -> bool:
    """Tell whether in this call of `causal_conv3d` the `residual` may be `out` itself."""
    call = ConvArgs(*arguments, **keywords)
    bound = _CONV.bindings.find(call[:5], call[5:], None, backend, precision)
    if bound is not None:
        return bound.residual_may_be_out
    return _choose(call, None, backend, precision)[1].adds_in_place


def _choose(
    call: ConvArgs, out: Tensor | None, backend: str | None, precision: str | None
) -> tuple[ConvArgs, Backend]:
    """Return a call, checked, and its backend when something observes the call."""
    args = _checked(call)
    backend = packed_or_aten(args.weight, backend)
    return args, _CONV.choose(args, backend, precision, _CONV.check_out(out, args))


def _read_from(
    buffer: FrameBuffer,
    tensors: tuple[Any, ...],
    options: tuple[Any, ...],
    return_final_state: bool,
    out: Tensor | None,
    backend: str | None,
    precision: str | None,
) -> tuple[tuple[Any, ...], tuple[Any, ...], Tensor, Bound | None]:
    """Return tensors and options of the call that reads a buffer, what its state is taken of, and it, bound.

    Where the backend does not read body and state where they lie, the buffer's border is filled.
    """
    call = ConvArgs(*tensors, *options)
    check_operands(_NAME, buffer.storage, *tensors[1:])
    if return_final_state and buffer.tail_room:
        raise InvalidInput(
            f"{_NAME}: got return_final_state with a FrameBuffer of tail_room {buffer.tail_room}, expected "
            "none: what looks ahead has no state that the next chunk could start from"
        )
    _check_room(buffer, call)
    if _may_read_apart(buffer, call.initial_state):
        body = buffer.body
        apart = (body, *tensors[1:])
        bound = _CONV.bindings.find(apart, options, out, backend, precision)
        if bound is None:
            reads_apart = reads_two_sources(
                *call._replace(x=body), out=out, backend=backend, precision=precision
            )
        else:
            reads_apart = bound.reads_state_in_place
        if reads_apart:
            return apart, options, body, bound
    seen = body_of(buffer.storage, 0, buffer.halo)  # with the head-room: never too short for the state
    filled = _filled(call, backend)
    tensors, options = filled[:5], filled[5:]
    return tensors, options, seen, _CONV.bindings.find(tensors, options, out, backend, precision)


def _check_room(buffer: FrameBuffer, call: ConvArgs) -> None:
    check_video(_NAME, "weight", call.weight)
    frames = int_tuple(_NAME, "dilation", call.dilation, 3)[0] * (call.weight.shape[2] - 1)
    if buffer.head_room + buffer.tail_room != frames:
        raise InvalidInput(
            f"{_NAME}: the FrameBuffer has head_room {buffer.head_room} and tail_room {buffer.tail_room}, "
            f"expected dilation * (kT - 1) = {frames} frames in all"
        )
    if frames and call.temporal_mode == "valid":
        raise InvalidInput(
            f"{_NAME}: the FrameBuffer has head_room {frames} and temporal_mode is 'valid', expected a mode "
            "that says what the head-room holds: 'replicate' or 'zeros'"
        )
    if any(buffer.halo) and call.spatial_mode == "valid":
        raise InvalidInput(
            f"{_NAME}: the FrameBuffer has halo {buffer.halo} and spatial_mode is 'valid', expected a mode "
            "that says what the halo holds: 'zeros', 'replicate' or 'reflect'"
        )


def _may_read_apart(buffer: FrameBuffer, past: Tensor | None) -> bool:
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
    # With a gradient it is refused where the border is filled, whatever the backend.
    return not (
        torch.is_grad_enabled()
        and (buffer.storage.requires_grad or (past is not None and past.requires_grad))
    )


def _filled(call: ConvArgs, backend: str | None) -> ConvArgs:
    """Fill the border; return the convolution over the storage."""
    buffer, past = call.x, call.initial_state
    if past is not None and autocast_dtype(buffer.storage) is not None:
        past = past.to(buffer.storage.dtype)
    causal_pad3d_(
        buffer,
        temporal_mode=call.temporal_mode,
        spatial_mode=call.spatial_mode if any(buffer.halo) else "zeros",
        initial_state=past,
        backend=backend,
    )
    mode = "valid" if any(buffer.halo) else call.spatial_mode
    return call._replace(x=buffer.storage, initial_state=None, temporal_mode="valid", spatial_mode=mode)


def _arguments(
    *arguments: Any,
    out: Tensor | FrameBuffer | None = None,
    return_final_state: bool = False,
    **keywords: Any,
) -> tuple[ConvArgs, Tensor | None]:
    """Check the public function's arguments; return the record and the destination."""
    args = _checked(ConvArgs(*arguments, **keywords))
    return args, _CONV.check_out(out, args)


def _checked(call: ConvArgs) -> ConvArgs:
    """Check everything; return the record that backends take."""
    x, weight, bias, initial_state, residual, stride, dilation, temporal_mode, spatial_mode = call
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
    return call._replace(stride=stride, dilation=dilation)


_NAME = "causal_conv3d"
_CONV = Op(
    _NAME,
    args=ConvArgs,
    reference=causal_conv3d_reference,
    check=_checked,
    prepare=_arguments,
    backends=(aten.CONV, cpu.CONV, triton.CONV, cuda.CONV),
    measured=measured,
    layout=("x", "weight"),
    may_be_out=("residual",),
    vjp=causal_conv3d_vjp,
    saves=("x", "weight", "initial_state"),
)
