"""The races of the norms: each kernel of ours against `aten`, into memory that is there, size by size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.op import explain
from ..core.size_class import size_classes
from ..ops import group_norm_silu_, rms_norm_silu_, spatial_norm_silu_
from ..temporal import FrameBuffer
from .race import Job, Race, Way

_BACKENDS = ("cpu", "triton", "cuda")
_FORMATS = (torch.contiguous_format, torch.channels_last_3d)
# (C, T, H, W): four times the elements from one to the next, as the size classes.
_SHAPES = (
    (16, 1, 16, 16),
    (32, 2, 16, 16),
    (64, 4, 16, 16),
    (128, 2, 32, 32),
    (128, 8, 32, 32),
    (128, 8, 64, 64),
    (128, 8, 128, 128),
    (128, 8, 256, 256),
)
_GROUPS = 8
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}

Arguments = Callable[[Tensor], tuple[Any, ...]]


def group_norm_jobs(dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return a race of `group_norm_silu_` for each size class."""
    return _jobs(group_norm_silu_, _group_norm, dtypes)


def rms_norm_jobs(dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return a race of `rms_norm_silu_` for each size class."""
    return _jobs(rms_norm_silu_, lambda x: (_random(x, x.shape[1]),), dtypes)


def spatial_norm_jobs(dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return a race of `spatial_norm_silu_` for each size class: scale and shift at a quarter of the size."""
    return _jobs(spatial_norm_silu_, _spatial_norm, dtypes)


def _group_norm(x: Tensor) -> tuple[Any, ...]:
    return _GROUPS, _random(x, x.shape[1]), _random(x, x.shape[1])


def _spatial_norm(x: Tensor) -> tuple[Any, ...]:
    batch, channels, frames, height, width = x.shape
    small = (batch, channels, max(frames // 4, 1), height // 4, width // 4)
    return (_random(x, *small), _random(x, *small), *_group_norm(x))


def _random(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape, device=like.device).to(like.dtype)


def _jobs(op: Callable[..., None], arguments: Arguments, dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Dtypes of one size share a class, which the first of them is measured for."""
    found: dict[str, Job] = {}
    for dtype in dtypes:
        for memory_format in _FORMATS:
            for shape in _SHAPES:
                x = torch.empty((1, *shape), dtype=dtype, device="meta", memory_format=memory_format)
                shape_class = next(size_classes(x, written=math.prod(shape)))
                prepare = functools.partial(_race, op, arguments, shape, dtype, memory_format)
                name = f"{op.__name__} {'x'.join(map(str, shape))} {shape_class}"
                found.setdefault(shape_class, Job(name, shape_class, prepare))
    return list(found.values())


def _race(
    op: Callable[..., None],
    arguments: Arguments,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    device: torch.device,
) -> Race:
    x = torch.randn((1, *shape), device=device).to(dtype).contiguous(memory_format=memory_format)
    given = arguments(x)
    buffer = FrameBuffer.empty(x.shape, head_room=2, dtype=dtype, device=device, memory_format=memory_format)

    def run(backend: str) -> Tensor:
        op(buffer, x, *given, backend=backend)
        return buffer.body

    can = [b for b in _BACKENDS if explain(op, buffer, x, *given, backend=b).chosen == b]
    ways = [Way(name, functools.partial(run, name)) for name in ("aten", *can)]
    spoil = functools.partial(buffer.storage.fill_, float("nan"))
    return Race("x".join(map(str, x.shape)), ways[0], ways[1:], _TOLERANCE[dtype], spoil=spoil)
