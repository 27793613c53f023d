"""Causal convolution by the native CPU module: reads input and state as two sources, copies neither.

In bfloat16 on AMX's matrix tiles where the processor has them (docs/design/tiles.md). Otherwise in float32,
whatever the dtype: by Winograd's algorithm where it does less than half of the multiplications, else by the
direct one (docs/design/winograd.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....core import memory, native
from ....core.backend import Backend, always
from ....core.packed import find_packed, layout_key, recall
from ....core.precision import why_not_exact
from ..spec import ConvArgs, moves, takes_tiles, takes_winograd

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not(args: Any, precision: str, out: Tensor | None = None) -> str | None:
    """Return why our convolutions on a CPU cannot take a call, whose `args.x` are the frames, or None."""
    if args.x.device.type != "cpu":
        return f"the tensor is on {args.x.device}, the kernel runs on a CPU"
    if args.x.dtype not in DTYPES:
        return f"the kernel knows float32, bfloat16 and float16, not {args.x.dtype}"
    return why_not_exact(precision, "convolution") or native.why_no_cpu()


class Packing(NamedTuple):
    """How the weights of a call are packed.

    Attributes:
        algorithm: "winograd" or "tiles".
        unit: What computes it: an instruction set, or which matrix tiles.
        size: Bytes.
    """

    algorithm: str
    unit: str
    size: int

    @property
    def kind(self) -> tuple[str, str]:
        """What tells these packed weights from others, as `core.packed` takes it."""
        return self.algorithm, self.unit

    @property
    def tiles(self) -> str:
        """Which matrix tiles they are for, as the native module takes it."""
        return self.unit if self.algorithm == "tiles" else ""

    @property
    def many_pixels(self) -> int:
        """From how many output pixels on packing pays, if it is done on every call.

        Winograd's writes 576 bytes per pair of channels, at 3 GB/s, and saves three quarters of 54 operations
        per pair and pixel, at 200 GFLOP/s. That of tiles writes 54 bytes, at 1 GB/s, and saves more.
        """
        return 2**10 if self.tiles else 2**12


def packing_of(args: ConvArgs, size: Sequence[int]) -> Packing | None:
    """Return how the weights of a call are packed, whose output has size (T, H, W); None: they are not."""
    weight = args.weight
    if takes_winograd(weight.shape, args.stride, args.dilation, size):
        return tile_packing(weight) or winograd_packing(weight, native.cpu_isa())
    return tile_packing(weight)


def tile_packing(weight: Tensor) -> Packing | None:
    """Return how weights are packed for matrix tiles, or None where these cannot be used."""
    tiles = native.cpu_tiles()
    if not tiles or not takes_tiles(weight.dtype, weight.shape):
        return None
    return Packing("tiles", tiles, native.cpu_module().tiles_packed_bytes(native.describe(weight)))


def winograd_packing(weight: Tensor, isa: str) -> Packing:
    """Return how Winograd's weights are packed."""
    size = 4 * native.cpu_module().winograd_packed_floats(native.describe(weight), isa)
    return Packing("winograd", isa, size)


def _convolve(out: Tensor, args: ConvArgs, precision: str) -> None:
    x, weight, state, residual = args.x, args.weight, args.initial_state, args.residual
    bias = None if args.bias is None else args.bias.contiguous()
    packing, packed = packing_of(args, out.shape[2:]), None
    if packing is not None:
        packed = find_or_pack(weight, packing, out.numel() // out.shape[1])
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
        native.cpu_isa(),
        torch.get_num_threads(),
        None if packed is None else native.address(packed),
        None,
        "" if packing is None else packing.tiles,
    )


class _Plan:
    """A convolution that is given addresses alone: `core.bind.Write`."""

    def __init__(self, args: ConvArgs, out: Tensor, must_keep: bool) -> None:
        self._must_keep, self._packing = must_keep, packing_of(args, out.shape[2:])
        tiles = "" if self._packing is None else self._packing.tiles
        tensors = (args.x, args.weight, args.initial_state, args.residual)
        described = [None if t is None else native.describe(t) for t in tensors]
        steps = (tuple(args.stride), tuple(args.dilation), args.pad.sides)
        words = (args.temporal_mode, args.spatial_mode, DTYPES[args.x.dtype], native.cpu_isa(), tiles)
        # A destination that is still to be allocated has no address.
        place = native.address(args.x) if out.is_meta else native.address(out)
        self._native = native.cpu_module().ConvPlan(
            (place, tuple(out.shape), out.stride()), *described, *steps, *words
        )
        if self._packing is not None:
            self._pixels = out.numel() // out.shape[1]
            self._key = layout_key(args.weight, self._packing.kind)
            self._itemsize = args.weight.element_size()

    def __call__(self, out: Tensor, tensors: tuple[Any, ...]) -> bool:
        x, weight, bias, state, residual = tensors
        place, packed = weight.data_ptr(), None
        if self._packing is not None:
            checksum = self._native.weight_fingerprint(place, self._itemsize)
            packed = recall((place, *self._key), weight, checksum, self._pixels)
            if packed is None:
                packed = find_or_pack(weight, self._packing, self._pixels, self._must_keep)
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
            torch.get_num_threads(),
        )
        return True


def _bind(args: ConvArgs, out: Tensor, must_keep: bool) -> _Plan | None:
    return _Plan(args, out, must_keep) if args.bias is None or args.bias.is_contiguous() else None


def find_or_pack(weight: Tensor, packing: Packing, pixels: int, must_keep: bool = False) -> Tensor | None:
    """Return the packed weights of a call, or None where they are not kept and not worth it for one call.

    Args:
        weight: The weights.
        packing: How they are packed.
        pixels: Of the output, frames and batch counted.
        must_keep: Do not pack for one call.
    """

    def pack() -> Tensor:
        packed = memory.empty((packing.size // 4,))
        place, described, threads = native.address(packed), native.describe(weight), torch.get_num_threads()
        if packing.tiles:
            native.cpu_module().tiles_pack(place, described, threads)
        else:
            native.cpu_module().winograd_pack(place, described, DTYPES[weight.dtype], packing.unit, threads)
        return packed

    packed = find_packed(weight, packing.kind, packing.size, pixels, pack)
    return pack() if packed is None and pixels >= packing.many_pixels and not must_keep else packed


CONV = Backend(
    "cpu", _convolve, why_not=why_not, two_sources=always, adds_in_place=True, bind=_bind, moves=moves
)
