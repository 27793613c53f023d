"""The races of the norm ops, fresh and into a buffer: our kernels against the framework's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.size_class import size_classes
from ..ops import group_norm, rms_norm, spatial_norm
from ..ops.norms.measurements import INTO
from ..workloads import FULL_SIZE, NormCase, in_buffer, make_norm_call
from .race import Job, Race, Way, usable

_OPS: dict[str, Callable[..., Any]] = {
    "group_norm": group_norm,
    "spatial_norm": spatial_norm,
    "rms_norm": rms_norm,
}
_BACKENDS = ("cpu", "triton")
# For a CPU, (B, C, T, H, W): four times the elements from one to the next, as the size classes.
CPU_SHAPES = (
    (1, 16, 1, 16, 16),
    (1, 32, 2, 16, 16),
    (1, 64, 4, 16, 16),
    (1, 128, 2, 32, 32),
    (1, 128, 8, 32, 32),
    (1, 128, 8, 64, 64),
    (1, 128, 8, 128, 128),
    (1, 128, 8, 256, 256),
)
_FORMATS = {"channels_last_3d": torch.channels_last_3d, "contiguous": torch.contiguous_format}
_GROUPS, _SEED = 8, 0
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def cpu_jobs(op: str, dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return the races for the size classes that a CPU can time."""
    return _jobs(op, dtypes, CPU_SHAPES)


def gpu_jobs(op: str, dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return the races for the size classes of the inputs of convolutions of `FULL_SIZE`.

    Those whose channels are no multiple of 8 are left out.
    """
    shapes = (w.shape for w in FULL_SIZE.values() if not w.in_channels % _GROUPS)
    return _jobs(op, dtypes, tuple(dict.fromkeys(shapes)))


def _jobs(op: str, dtypes: Sequence[torch.dtype], shapes: Sequence[tuple[int, ...]]) -> list[Job]:
    """Return a race for each size class, fresh and into a buffer; dtypes of one size share a class."""
    found: dict[str, Job] = {}
    for dtype in dtypes:
        for layout, memory_format in _FORMATS.items():
            for shape in shapes:
                x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
                for variant in ("", INTO):
                    shape_class = next(size_classes(x, written=x.numel(), variant=variant), None)
                    if shape_class is not None and shape_class not in found:
                        prepare = functools.partial(_race, op, shape, layout, dtype, variant == INTO)
                        name = f"{op} {'x'.join(map(str, shape))} {shape_class}"
                        found[shape_class] = Job(name, shape_class, prepare)
    return list(found.values())


def _race(
    op: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype, into: bool, device: torch.device
) -> Race:
    latent = tuple(n // 2 if n % 2 == 0 else n for n in shape[2:])
    call = make_norm_call(op, NormCase(op, shape, _GROUPS, latent, layout), dtype, _SEED, device)
    words = "x".join(map(str, shape))
    norm = _OPS[op]
    if not into:
        ways = _ways(op, call, lambda name: functools.partial(norm, **call, backend=name))
        return Race(f"{words} -> {words}", ways[0], ways[1:], _TOLERANCE[dtype])
    buffer = in_buffer(torch.zeros_like(call["x"]), 2)

    def write(backend: str) -> Tensor:
        norm(**call, out=buffer, backend=backend)
        return buffer.body

    ways = _ways(op, call, lambda name: functools.partial(write, name))
    spoil = functools.partial(buffer.body.fill_, float("nan"))
    return Race(f"{words} -> {words}", ways[0], ways[1:], _TOLERANCE[dtype], spoil)


def _ways(op: str, call: dict[str, Any], run: Callable[[str], Callable[[], Tensor]]) -> list[Way]:
    """Return the default's way, and those of our backends that can run a call."""
    return [Way(name, run(name)) for name in ("aten", *usable(_BACKENDS, op, **call))]
