"""Bias and residual after the framework's convolution on a GPU: one pass over its output, in place.

Given a bias, the framework adds it in a kernel of its own, a pass over the output that is a tenth of a Wan
decode; the residual takes a second one. Here one Triton kernel adds both, in float32, rounded once.
"""

from __future__ import annotations

from torch import Tensor

from ....core.pixel_walk import LIMIT, NEITHER, PixelWalk
from ....core.triton_runtime import why_no_triton

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
    from .triton.epilogue import launch

    launch(y, bias, residual).run()
    return y


def why_not_fused(y: Tensor, residual: Tensor) -> str | None:
    """Return why the kernel cannot add to `y`, or None."""
    if y.element_size() > 4:
        return f"the kernel adds in float32, and the tensors are {y.dtype}"
    reason = why_no_triton(y.device)
    # Every program has an element of its own, so that so few cannot ask for too many programs.
    if reason is not None or y.numel() <= LIMIT:
        return reason
    walk = PixelWalk.of(y, residual)
    programs = walk.programs(*tile(walk))
    return None if programs <= LIMIT else f"the sum takes {programs} steps, the kernel counts to {LIMIT}"


def tile(walk: PixelWalk) -> tuple[int, int]:
    """Return how many channels and pixels a program takes: four 16-byte accesses a thread, or 8 elements."""
    items = NUM_WARPS * 32 * 64 // walk.tensors[0].element_size()
    return walk.tile(items // 4 if NEITHER in (walk.inner(0), walk.inner(1)) else items)
