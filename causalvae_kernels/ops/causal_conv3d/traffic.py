"""The bytes that our kernels of `causal_conv3d` move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...core.layout import is_channels_last_3d
from ...core.traffic import Pass, bytes_of, bytes_of_shape
from ..causal_pad3d.traffic import moves as padding_moves
from .spec import output_size, paddings


def moves(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> list[Pass]:
    """Return one pass, and for the residual another: frames and state are read where they lie.

    Weights count as they are given; Winograd's are larger, and transformed once.
    """
    kernel_size = weight.shape[2:]
    size = output_size(x.shape, kernel_size, stride, dilation, temporal_mode, spatial_mode)
    read = bytes_of(x, initial_state, weight, bias)
    written = bytes_of_shape((x.shape[0], weight.shape[0], *size), x.dtype)
    pointwise = tuple(kernel_size) == (1, 1, 1)
    passes = [Pass(f"causal_conv3d {'x'.join(map(str, kernel_size))}", read, written, not pointwise)]
    if residual is not None:
        passes.append(Pass("causal_conv3d, its residual", bytes_of(residual), 0))
    return passes


def moves_with_packing(x: Tensor, weight: Tensor, *others: Any) -> list[Pass]:
    """Return the same, and the copy of weights that are not channels last, made on every call."""
    return [*_packing(weight), *moves(x, weight, *others)]


def moves_padded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> list[Pass]:
    """Return the passes of a kernel that reads one channels-last tensor: what else it needs is copied first.

    Zeros before a first chunk are counted as a copy, though the kernel may have them for free.
    """
    pad = paddings(weight.shape[2:], dilation, temporal_mode, spatial_mode)
    copies = pad.copies or not is_channels_last_3d(x)
    options = (stride, dilation, temporal_mode, spatial_mode, precision)
    passes = moves(x, weight, bias, initial_state, residual, *options)
    if copies:
        passes = [*padding_moves(x, initial_state, pad.causal, pad.explicit), *passes]
    return [*_packing(weight), *passes]


def _packing(weight: Tensor) -> list[Pass]:
    if weight.shape[2:].numel() == 1 or is_channels_last_3d(weight):
        return []
    return [Pass("causal_conv3d, its weights", bytes_of(weight), bytes_of(weight))]
