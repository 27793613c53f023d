"""`causal_conv3d` beside diffusers' own modules, contiguous and channels_last_3d, one thread and two.

The benchmarked function is ours on contiguous tensors. Before each of its rounds every other provider runs on
the same input. Parity of the very outputs that are timed is checked before.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from causalvae_kernels import causal_conv3d, explain
from causalvae_kernels.bench.providers import CONV_OURS, CONV_REFERENCES, conv_call, conv_providers
from causalvae_kernels.bench.record import conv_row
from causalvae_kernels.bench.roofline import Limits
from causalvae_kernels.ops.causal_conv3d.spec import flops
from causalvae_kernels.parity import ConvOracle, check_conv
from causalvae_kernels.workloads import GATED, WORKLOADS

pytest.importorskip("diffusers")

DTYPES = (torch.float32, torch.bfloat16)
THREADS = (1, 2)
NAMES = (*GATED, *(name for name in WORKLOADS if name not in GATED))
# Compiling takes some ten seconds each: two of them show what it brings.
COMPILED = GATED[:2]


@functools.lru_cache(maxsize=1)
def _problem(name: str, dtype: torch.dtype) -> tuple[dict[str, Any], ConvOracle]:
    call = conv_call(WORKLOADS[name], dtype, random.SystemRandom().randrange(2**31))
    return call, ConvOracle(call)


def _rounds(name: str) -> int:
    """Odd numbers; the whole suite takes a few minutes."""
    work = flops(WORKLOADS[name].shape, WORKLOADS[name].weight_shape)
    return 9 if work < 2e10 else 5 if work < 6e10 else 3


@pytest.mark.parametrize("threads", THREADS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.benchmark(group="causal_conv3d")
def test_causal_conv3d(
    name: str,
    dtype: torch.dtype,
    threads: int,
    limits: Limits,
    request: pytest.FixtureRequest,
    time_beside: Callable[..., Any],
    keep: Callable[..., None],
) -> None:
    call, oracle = _problem(name, dtype)
    wish = request.config.getoption("--compiled")
    compiled = wish == "all" or (wish == "some" and name in COMPILED and threads > 1)
    providers = conv_providers(call, compiled=compiled)
    errors = check_conv(oracle, providers, CONV_REFERENCES, f"{name} {dtype}")
    with torch.no_grad():
        backend = explain(causal_conv3d, **call).chosen
    timings = time_beside(providers, CONV_OURS[0], _rounds(name))
    keep(conv_row(WORKLOADS[name], dtype, timings, errors, threads=threads, backend=backend, limits=limits))
