"""Measures every way of ours to compute a convolution on a GPU against the framework's, workload by workload.

A way is a backend, and for Triton a tile. All of them are timed shortly, the best one then in alternation
with the default backend, the caches cold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.op import explain
from ..core.tuned import Measurement, gpu_architecture
from ..ops import causal_conv3d
from ..ops.causal_conv3d import triton_tiles
from ..ops.causal_conv3d.shape_class import shape_classes
from ..ops.causal_conv3d.spec import output_size
from ..ops.causal_conv3d.triton_call import make_call
from ..workloads import ConvCase, Workload, make_conv_call
from .roofline import flush_cache
from .timing import percentile, time_once, time_providers

BACKEND, DEFAULT = "triton", "aten"

_SHORT, _ROUNDS = 3, 15
_SEED = 0
# Norm-wise, relative. A wrong kernel is kept from being timed; `verify` applies the tolerance rule.
_LARGEST_DIFFERENCE = {torch.float32: 2e-3, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Way:
    """One way to compute a convolution.

    Attributes:
        backend: Its name.
        plan: Its tile, as a record holds it, or None.
        run: Computes it.
    """

    backend: str
    plan: dict[str, Any] | None
    run: Callable[[], Tensor]

    @property
    def words(self) -> str:
        """The backend and its tile, for people."""
        tile = "" if self.plan is None else " " + " ".join(f"{k}={v}" for k, v in self.plan.items())
        return f"{self.backend}{tile}"


def class_of(workload: Workload, dtype: torch.dtype) -> str:
    """Return the class that the measurement of a workload will speak for."""
    return shape_classes(dtype, workload.shape, workload.weight_shape, workload.stride, gpu=True)[0]


@torch.no_grad()
def measure(
    workload: Workload, dtype: torch.dtype, device: torch.device, progress: Callable[[str], None]
) -> tuple[Measurement, dict[str, float], list[str]]:
    """Find the fastest way of ours, and time it beside the default backend.

    Args:
        workload: The convolution, in the middle of a stream.
        dtype: Of all tensors.
        device: The GPU.
        progress: Called with a few words before each way.

    Returns:
        The measurement of the best way; the median milliseconds of each way; a sentence for each that was not
        timed because its result is wrong.

    Raises:
        RuntimeError: None of ours gives the result.
    """
    call = _call(workload, dtype, device)
    flush = flush_cache(device)

    def default() -> Tensor:
        return causal_conv3d(**call, backend=DEFAULT)

    expected = default()
    times: dict[str, float] = {}
    best: Way | None = None
    wrong = []
    for way in ways(call):
        progress(f"{workload.name} {way.words}")
        difference = _difference(way.run(), expected)
        if not difference <= _LARGEST_DIFFERENCE[dtype]:
            what = f"{workload.name}, {dtype}"
            wrong.append(f"{way.words} differs from {DEFAULT} by {difference:.2g} for {what}")
            continue
        samples = [time_once(way.run, device, flush) for _ in range(_SHORT)]
        times[way.words] = percentile(samples, 50)
        if best is None or times[way.words] < times[best.words]:
            best = way
    if best is None:
        raise RuntimeError(f"tune: no way of ours computes {workload.name}, {dtype}: {'; '.join(wrong)}")
    providers = {DEFAULT: default, best.backend: best.run}
    timings = time_providers(providers, repeats=_ROUNDS, warmup=2, device=device, before=flush)
    size = output_size(workload.shape, workload.kernel_size, workload.stride, (1, 1, 1), "replicate", "zeros")
    shapes = (workload.shape, (1, workload.out_channels, *size))
    measurement = Measurement(
        shape_class=class_of(workload, dtype),
        shapes=" -> ".join("x".join(map(str, s)) for s in shapes),
        ms=timings[best.backend].p50_ms,
        default_ms=timings[DEFAULT].p50_ms,
        rounds=_ROUNDS,
        backend=best.backend,
        default=DEFAULT,
        isa=gpu_architecture(device),
        plan=best.plan,
    )
    return measurement, times, wrong


def ways(call: Mapping[str, Any]) -> list[Way]:
    """Return every way of ours that can compute a call: Triton with each of its tiles, and CUDA C++."""
    found = []
    if explain("causal_conv3d", **call, backend="triton").chosen == "triton":
        found += [Way("triton", asdict(tile), _triton(call, tile)) for tile in _tiles(call)]
    if explain("causal_conv3d", **call, backend="cuda").chosen == "cuda":
        found.append(Way("cuda", None, lambda: causal_conv3d(**call, backend="cuda")))
    return found


def _tiles(call: Mapping[str, Any]) -> list[triton_tiles.Tile]:
    arguments = _arguments(call)
    capability = triton_tiles.capability_of(arguments[0].device)
    tiles = list(triton_tiles.configurations(capability, arguments[0].dtype))
    if triton_tiles.why_no_winograd(make_call(*arguments)) is None:
        tiles.append(triton_tiles.winograd_tile(capability))
    return tiles


def _triton(call: Mapping[str, Any], tile: triton_tiles.Tile) -> Callable[[], Tensor]:
    from ..ops.causal_conv3d.triton_run import run

    arguments = _arguments(call)
    capability = triton_tiles.capability_of(arguments[0].device)

    def convolve() -> Tensor:
        prepared = make_call(*arguments)
        run(prepared, triton_tiles.choose(prepared, capability, tile))
        return prepared.out

    return convolve


def _arguments(call: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the operator's arguments of a call of the public function with default modes."""
    state, stride = call.get("initial_state"), tuple(call["stride"])
    return call["x"], call["weight"], call["bias"], state, None, stride, (1, 1, 1), "replicate", "zeros"


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


def _difference(got: Tensor, expected: Tensor) -> float:
    got, expected = got.float(), expected.float()
    return ((got - expected).norm() / expected.norm()).item()
