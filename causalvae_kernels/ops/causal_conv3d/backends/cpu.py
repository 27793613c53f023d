"""Causal convolution by the native CPU module: reads input and state as two sources, copies neither.

Winograd's algorithm where it does less than half of the multiplications, else the direct one; float32 inside,
whatever the dtype. docs/design/winograd.md tells how it is done and what it costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....core import memory, native
from ....core.backend import Backend, always
from ....core.packed import find_packed, layout_key, recall
from ....core.precision import why_not_exact
from ..spec import ConvArgs, moves, takes_winograd

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not(args: Any, precision: str, out: Tensor | None = None) -> str | None:
    """Return why our convolutions on a CPU cannot take a call, whose `args.x` are the frames, or None."""
    if args.x.device.type != "cpu":
        return f"the tensor is on {args.x.device}, the kernel runs on a CPU"
    if args.x.dtype not in DTYPES:
        return f"the kernel knows float32, bfloat16 and float16, not {args.x.dtype}"
    return why_not_exact(precision, "convolution") or native.why_no_cpu()


def _convolve(out: Tensor, args: ConvArgs, precision: str) -> None:
    x, weight, state, residual = args.x, args.weight, args.initial_state, args.residual
    bias = None if args.bias is None else args.bias.contiguous()
    isa, threads = native.cpu_isa(), torch.get_num_threads()
    packed = None
    if takes_winograd(weight.shape, args.stride, args.dilation, out.shape[2:]):
        packed = _packed(weight, out.numel() // out.shape[1], isa, threads)
    native.cpu_module().causal_conv3d(
        native.describe(out),
        native.describe(x),
        native.describe(weight),
        None if bias is None else native.address(bias),
        None if state is None else native.describe(state),
        None if residual is None else native.describe(residual),
        tuple(args.stride),
        tuple(args.dilation),
        args.pad.sides,
        args.temporal_mode,
        args.spatial_mode,
        DTYPES[x.dtype],
        isa,
        threads,
        None if packed is None else native.address(packed),
    )


class _Plan:
    """A convolution that is given addresses alone: `core.bind.Write`."""

    def __init__(self, args: ConvArgs, out: Tensor, must_keep: bool) -> None:
        self._isa, self._must_keep = native.cpu_isa(), must_keep
        tensors = (args.x, args.weight, args.initial_state, args.residual)
        described = [None if t is None else native.describe(t) for t in tensors]
        steps = (tuple(args.stride), tuple(args.dilation), args.pad.sides)
        words = (args.temporal_mode, args.spatial_mode, DTYPES[args.x.dtype], self._isa)
        # A destination that is still to be allocated has no address.
        place = native.address(args.x) if out.is_meta else native.address(out)
        self._native = native.cpu_module().ConvPlan(
            (place, tuple(out.shape), out.stride()), *described, *steps, *words
        )
        self._key: tuple[object, ...] | None = None
        if takes_winograd(args.weight.shape, args.stride, args.dilation, out.shape[2:]):
            self._pixels = out.numel() // out.shape[1]
            self._key = layout_key(args.weight, packing(args.weight, self._isa)[0])
            self._itemsize = args.weight.element_size()

    def __call__(self, out: Tensor, tensors: tuple[Any, ...]) -> bool:
        x, weight, bias, state, residual = tensors
        threads, place, packed = torch.get_num_threads(), weight.data_ptr(), None
        if self._key is not None:
            checksum = self._native.weight_fingerprint(place, self._itemsize)
            packed = recall((place, *self._key), weight, checksum, self._pixels)
            if packed is None:
                packed = _packed(weight, self._pixels, self._isa, threads, self._must_keep)
                if packed is None and self._must_keep:
                    return False
        self._native.run(
            out.data_ptr(),
            x.data_ptr(),
            place,
            0 if bias is None else bias.data_ptr(),
            0 if state is None else state.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            0 if packed is None else packed.data_ptr(),
            threads,
        )
        return True


def _bind(args: ConvArgs, out: Tensor, must_keep: bool) -> _Plan | None:
    return _Plan(args, out, must_keep) if args.bias is None or args.bias.is_contiguous() else None


# Transforming the weights on every call pays from so many output pixels on: it writes 576 bytes per pair of
# channels, at 3 GB/s, and saves three quarters of 54 operations per pair and pixel, at 200 GFLOP/s.
_MANY_PIXELS = 2**12


def _packed(weight: Tensor, pixels: int, isa: str, threads: int, must_keep: bool = False) -> Tensor | None:
    """Return the transformed weights, or None where they are not kept and not worth it for one call."""
    kind, size = packing(weight, isa)

    def pack() -> Tensor:
        packed = memory.empty((size // 4,))
        native.cpu_module().winograd_pack(
            native.address(packed), native.describe(weight), DTYPES[weight.dtype], isa, threads
        )
        return packed

    packed = find_packed(weight, kind, size, pixels, pack)
    return pack() if packed is None and pixels >= _MANY_PIXELS and not must_keep else packed


def packing(weight: Tensor, isa: str) -> tuple[object, int]:
    """Return what decides how Winograd's weights are packed, and how many bytes they take."""
    return ("winograd", isa), 4 * native.cpu_module().winograd_packed_floats(native.describe(weight), isa)


CONV = Backend(
    "cpu", _convolve, why_not=why_not, two_sources=always, adds_in_place=True, bind=_bind, moves=moves
)
