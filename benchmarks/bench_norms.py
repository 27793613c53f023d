"""The norm ops beside diffusers' modules with SiLU, contiguous and channels_last_3d, one thread and two.

Ours runs as a swapped model runs it: the spatial norm's two convolutions at latent resolution, fresh and into
the buffer that a convolution reads. Before each of its rounds every other provider runs on the same input.
Parity is checked before; the bytes of each provider are counted, not computed from a formula.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from causalvae_kernels.bench.module_providers import OURS, norm_pair
from causalvae_kernels.bench.record import module_row
from causalvae_kernels.bench.roofline import Limits
from causalvae_kernels.bench.traffic import count_traffic
from causalvae_kernels.parity import check_module
from causalvae_kernels.workloads import NORM_WORKLOADS, NormWorkload

pytest.importorskip("diffusers")

DTYPES = (torch.float32, torch.bfloat16)
THREADS = (1, 2)
ROUNDS = 15


@pytest.mark.parametrize("threads", THREADS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("workload", NORM_WORKLOADS, ids=lambda w: f"{w.op}-{w.name}")
@pytest.mark.benchmark(group="norms")
def test_norm(
    workload: NormWorkload,
    dtype: torch.dtype,
    threads: int,
    limits: Limits,
    time_beside: Callable[..., Any],
    keep: Callable[..., None],
) -> None:
    pair = norm_pair(workload, dtype, random.SystemRandom().randrange(2**31))
    providers = pair.providers()
    allowed = (pair.factor, pair.long_sum)
    errors = check_module(providers, pair.oracle(), OURS, *allowed, f"{workload.op} {workload.name} {dtype}")
    moved = {name: count_traffic(provider).bytes for name, provider in providers.items()}
    timings = time_beside(providers, OURS[0], ROUNDS)
    shared = {"threads": threads, "backend": pair.backend, "limits": limits}
    keep(module_row(workload.op, workload.name, dtype, timings, errors, moved, **shared))
