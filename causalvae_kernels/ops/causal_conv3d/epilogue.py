"""Bias and residual after the framework's convolution on a GPU: one pass over its output, in place.

Given a bias, the framework adds it in a kernel of its own, a pass over the output that is a tenth of a Wan
decode; the residual takes a second one. Here one Triton kernel adds both, in float32, rounded once.
"""

from __future__ import annotations

from torch import Tensor

from ...core.triton_launch import covering_block, power_of_two
from ...core.triton_runtime import why_no_triton

# Programs and pixels of a row are counted in 32 bits, with room for a tile.
_LIMIT = 2**31 - 2**16
_ACCESS_BYTES = 16
NUM_WARPS = 4


def add_(y: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Return `y` with bias and residual added in place.

    Args:
        y: Shape (B, C, T, H, W), any strides.
        bias: Shape (C,), dtype of `y`.
        residual: Shape and dtype of `y`, any strides.
    """
    if bias is None:
        return y if residual is None else y.add_(residual)
    if residual is None:
        return y.add_(bias.view(-1, 1, 1, 1))
    if why_not_fused(y, residual) is not None:
        return y.add_(bias.view(-1, 1, 1, 1)).add_(residual)
    from .triton_epilogue import launch

    launch(y, bias, residual).run()
    return y


def why_not_fused(y: Tensor, residual: Tensor) -> str | None:
    """Return why the kernel cannot add to `y`, or None."""
    if y.element_size() > 4:
        return f"the kernel adds in float32, and the tensors are {y.dtype}"
    reason = why_no_triton(y.device)
    # Every program has an element of its own, so that so few cannot ask for too many programs.
    if reason is not None or y.numel() <= _LIMIT:
        return reason
    programs, _ = plan(y, residual)
    return None if programs <= _LIMIT else f"the sum takes {programs} steps, the kernel counts to {_LIMIT}"


def plan(y: Tensor, residual: Tensor) -> tuple[int, dict[str, int | bool]]:
    """Return how many programs there are, and the kernel's numbers and constants by name.

    Pixels are walked along up to four axes: those of (B, T, H, W) that touch in both tensors are one. A
    program takes a tile of channels by pixels of the innermost. Nothing that it is compiled for depends on T,
    H or W, but for whether they allow 16-byte accesses in a contiguous tensor.
    """
    channels = y.shape[1]
    axes = _axes(y, residual)
    last = channels > 1 and y.stride(1) == 1
    strides = [[s[i] for _, s in axes] for i in (0, 1)]
    steps = (y.stride(1), residual.stride(1))
    aligned = [
        _aligned(tensor, (channels, step, own) if last else (axes[0][0], own[0], [step, *own[1:]]))
        for tensor, step, own in zip((y, residual), steps, strides, strict=True)
    ]
    # Four 16-byte accesses a thread for either tensor.
    items = NUM_WARPS * 32 * 4 * _ACCESS_BYTES // y.element_size()
    if not all(aligned):
        items //= 4
    block_c = covering_block(channels) if last else min(power_of_two(channels), 4)
    block_p = items // block_c
    numbers = {"channels": channels, "pixels": axes[0][0]}
    numbers |= {f"size_{i}": axes[i][0] for i in (1, 2, 3)}
    for name, step, own in zip(("y", "add"), steps, strides, strict=True):
        numbers |= {f"{name}_c": step, **{f"{name}_{i}": s for i, s in enumerate(own)}}
    numbers |= {"c_tiles": -(-channels // block_c), "p_tiles": -(-axes[0][0] // block_p)}
    programs = numbers["c_tiles"] * numbers["p_tiles"] * axes[1][0] * axes[2][0] * axes[3][0]
    constants = {"LAST": last, "Y_ALIGNED": aligned[0], "ADD_ALIGNED": aligned[1]}
    return programs, numbers | constants | {"BLOCK_C": block_c, "BLOCK_P": block_p}


def _axes(y: Tensor, residual: Tensor) -> list[tuple[int, tuple[int, int]]]:
    """Return (size, strides in both tensors) of four axes of pixels, the innermost first."""
    axes: list[tuple[int, tuple[int, int]]] = []
    for dim in (4, 3, 2, 0):
        size, strides = y.shape[dim], (y.stride(dim), residual.stride(dim))
        if size == 1:
            continue
        if axes:
            inner, inner_strides = axes[-1]
            if tuple(inner * s for s in inner_strides) == strides and inner * size <= _LIMIT:
                axes[-1] = (inner * size, inner_strides)
                continue
        axes.append((size, strides))
    return axes + [(1, (0, 0))] * (4 - len(axes))


def _aligned(tensor: Tensor, walk: tuple[int, int, list[int]]) -> bool:
    """Tell whether 16 bytes at a time can be accessed along a (size, stride); the rest are other strides."""
    size, stride, others = walk
    vector = _ACCESS_BYTES // tensor.element_size()
    return (
        stride == 1
        and tensor.data_ptr() % _ACCESS_BYTES == 0
        and not any(n % vector for n in (size, *others))
    )
