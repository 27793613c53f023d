"""The races of `causal_pad3d` and `causal_pad3d_` on a GPU: Triton and CUDA C++ against `aten`."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.size_class import size_classes
from ..ops import causal_pad3d, causal_pad3d_
from ..ops.causal_pad3d.measurements import IN_PLACE, written
from ..workloads import FULL_SIZE, in_buffer
from .race import Job, Race, Way, usable

_BACKENDS = ("triton", "cuda")
_FORMATS = (torch.channels_last_3d, torch.contiguous_format)


def jobs(dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return a race for each size class in which an input of a convolution of `FULL_SIZE` is padded.

    They are in the middle of a stream: what is put in front is a state. Dtypes of one size share a class.
    """
    found: dict[str, Job] = {}
    for dtype in dtypes:
        for memory_format in _FORMATS:
            for workload in FULL_SIZE.values():
                frames = workload.kernel_size[0] - 1
                for variant in ("", IN_PLACE) if frames else ():
                    job = _job(workload.shape, frames, dtype, memory_format, variant)
                    if job is not None:
                        found.setdefault(job.shape_class, job)
    return list(found.values())


def _job(
    shape: tuple[int, ...], frames: int, dtype: torch.dtype, memory_format: torch.memory_format, variant: str
) -> Job | None:
    x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
    copied = written(shape, frames, (0, 0, 0, 0))
    count = copied - x.numel() if variant == IN_PLACE else copied
    shape_class = next(size_classes(x, written=count, variant=variant), None)
    if shape_class is None:
        return None
    prepare = functools.partial(_race, shape, frames, dtype, memory_format, variant == IN_PLACE)
    return Job(f"{'x'.join(map(str, shape))} {shape_class}", shape_class, prepare)


def _race(
    shape: tuple[int, ...],
    frames: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    in_place: bool,
    device: torch.device,
) -> Race:
    def random(count: int) -> Tensor:
        x = torch.randn(*shape[:2], count, *shape[3:], device=device)
        return x.to(dtype).contiguous(memory_format=memory_format)

    x, state = random(shape[2]), random(frames)
    padded = (*shape[:2], frames + shape[2], *shape[3:])
    shapes = " -> ".join("x".join(map(str, s)) for s in (shape, padded))
    if not in_place:
        pad = functools.partial(causal_pad3d, x, frames, initial_state=state)
        can = usable(_BACKENDS, "causal_pad3d", x, frames, initial_state=state)
        ways = [Way(name, functools.partial(pad, backend=name)) for name in ("aten", *can)]
        return Race(shapes, ways[0], ways[1:], 0.0)
    buffer = in_buffer(x, frames)

    def fill(backend: str) -> Tensor:
        causal_pad3d_(buffer, initial_state=state, backend=backend)
        return buffer.storage

    can = usable(_BACKENDS, "causal_pad3d_", buffer, initial_state=state)
    ways = [Way(name, functools.partial(fill, name)) for name in ("aten", *can)]
    head = buffer.storage[:, :, :frames]
    return Race(shapes, ways[0], ways[1:], 0.0, spoil=functools.partial(head.fill_, float("nan")))
