"""The bytes that our kernels of `causal_conv3d` move."""

from __future__ import annotations

from torch import Tensor

from ...core.layout import is_channels_last_3d
from ...core.traffic import Pass, bytes_of, bytes_of_shape
from ..causal_pad3d.spec import PadArgs
from ..causal_pad3d.traffic import moves as padding_moves
from .spec import ConvArgs


def moves(args: ConvArgs, out: Tensor | None) -> list[Pass]:
    """Return one pass, and for the residual another: frames and state are read where they lie.

    Weights count as they are given; Winograd's are larger, and transformed once.
    """
    kernel_size = tuple(args.weight.shape[2:])
    read = bytes_of(args.x, args.initial_state, args.weight, args.bias)
    written = bytes_of_shape(args.out_shape, args.out_dtype)
    name = f"causal_conv3d {'x'.join(map(str, kernel_size))}"
    passes = [Pass(name, read, written, kernel_size != (1, 1, 1))]
    if args.residual is not None:
        passes.append(Pass("causal_conv3d, its residual", bytes_of(args.residual), 0))
    return passes


def moves_with_packing(args: ConvArgs, out: Tensor | None) -> list[Pass]:
    """Return the same, and the copy of weights that are not channels last, made on every call."""
    return [*_packing(args.weight), *moves(args, out)]


def moves_padded(args: ConvArgs, out: Tensor | None) -> list[Pass]:
    """Return the passes of a kernel that reads one channels-last tensor: what else it needs is copied first.

    Zeros before a first chunk are counted as a copy, though the kernel may have them for free.
    """
    passes = moves(args, out)
    if args.pad.copies or not is_channels_last_3d(args.x):
        padding = PadArgs.of_conv(args.x, args.initial_state, args.pad, args.temporal_mode)
        passes = [*padding_moves(padding, None), *passes]
    return [*_packing(args.weight), *passes]


def _packing(weight: Tensor) -> list[Pass]:
    if weight.shape[2:].numel() == 1 or is_channels_last_3d(weight):
        return []
    return [Pass("causal_conv3d, its weights", bytes_of(weight), bytes_of(weight))]
