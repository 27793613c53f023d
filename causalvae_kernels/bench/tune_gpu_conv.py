"""The races of `causal_conv3d` on a GPU: every tile of Triton's and CUDA C++ against the framework's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..core.gpu_arch import capability_of
from ..core.op import explain, op_named
from ..ops import causal_conv3d
from ..ops.causal_conv3d.backends.triton.call import make_call
from ..ops.causal_conv3d.backends.triton.tiles import Tile, configurations
from ..ops.causal_conv3d.measurements import shape_classes
from ..ops.causal_conv3d.spec import output_size
from ..workloads import FULL_SIZE, ConvCase, Workload, make_conv_call
from .race import Job, Race, Way

_SEED = 0
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def jobs(dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return a race for each convolution of `FULL_SIZE` in each dtype, in the middle of a stream."""
    return [
        Job(f"{w.name} {str(d).removeprefix('torch.')}", class_of(w, d), functools.partial(_race, w, d))
        for d in dtypes
        for w in FULL_SIZE.values()
    ]


def class_of(workload: Workload, dtype: torch.dtype) -> str:
    """Return the class that the measurement of a workload will speak for."""
    return shape_classes(dtype, workload.shape, workload.weight_shape, workload.stride, gpu=True)[0]


def _race(workload: Workload, dtype: torch.dtype, device: torch.device) -> Race:
    call = _call(workload, dtype, device)
    size = output_size(workload.shape, workload.kernel_size, workload.stride, (1, 1, 1), "replicate", "zeros")
    shapes = (workload.shape, (1, workload.out_channels, *size))
    return Race(
        " -> ".join("x".join(map(str, s)) for s in shapes),
        Way("aten", functools.partial(causal_conv3d, **call, backend="aten")),
        ways(call),
        _TOLERANCE[dtype],
    )


def ways(call: Mapping[str, Any]) -> list[Way]:
    """Return every way of ours that can compute a call: Triton with each of its tiles, and CUDA C++."""
    found, x = [], call["x"]
    if explain("causal_conv3d", **call, backend="triton").chosen == "triton":
        tiles = configurations(capability_of(x.device), x.dtype)
        found += [Way("triton", _triton(call, tile), asdict(tile)) for tile in tiles]
    if explain("causal_conv3d", **call, backend="cuda").chosen == "cuda":
        found.append(Way("cuda", functools.partial(causal_conv3d, **call, backend="cuda")))
    return found


def _triton(call: Mapping[str, Any], tile: Tile) -> Callable[[], Tensor]:
    from ..ops.causal_conv3d.backends.triton.run import run

    op = op_named("causal_conv3d")
    args, _ = op.prepare(**call)

    def convolve() -> Tensor:
        out = op.empty(args)
        run(make_call(args, out), tile)
        return out

    return convolve


def _call(workload: Workload, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    case = ConvCase(
        workload.name,
        workload.shape,
        workload.out_channels,
        workload.kernel_size,
        "channels_last_3d",
        state=workload.kernel_size[0] > 1,
        options={"stride": workload.stride},
    )
    call = make_conv_call(case, dtype, _SEED, device)
    call["weight"] = call["weight"].contiguous(memory_format=torch.channels_last_3d)
    return call
