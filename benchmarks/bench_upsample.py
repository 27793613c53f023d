"""`upsample_conv` beside the upsamplers of CogVideoX, Wan and HunyuanVideo, one thread and two.

diffusers' modules interpolate, then convolve what is four or eight times as large. Before each round of ours
every other provider runs on the same input. Parity is checked before; the bytes of each provider are counted.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from causalvae_kernels.bench.module_providers import OURS, upsample_pair
from causalvae_kernels.bench.record import module_row
from causalvae_kernels.bench.roofline import Limits
from causalvae_kernels.bench.traffic import count_traffic
from causalvae_kernels.parity import check_module
from causalvae_kernels.workloads import UPSAMPLE_WORKLOADS, UpsampleWorkload

pytest.importorskip("diffusers")

DTYPES = (torch.float32, torch.bfloat16)
THREADS = (1, 2)
ROUNDS = 7


@pytest.mark.parametrize("threads", THREADS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("workload", UPSAMPLE_WORKLOADS, ids=lambda w: w.name.replace(" ", "-"))
@pytest.mark.benchmark(group="upsample_conv")
def test_upsample_conv(
    workload: UpsampleWorkload,
    dtype: torch.dtype,
    threads: int,
    limits: Limits,
    time_beside: Callable[..., Any],
    keep: Callable[..., None],
) -> None:
    pair = upsample_pair(workload, dtype, random.SystemRandom().randrange(2**31))
    providers = pair.providers()
    allowed = (pair.factor, pair.long_sum)
    errors = check_module(providers, pair.oracle(), OURS, *allowed, f"{workload.name} {dtype}")
    moved = {name: count_traffic(provider).bytes for name, provider in providers.items()}
    timings = time_beside(providers, OURS[0], ROUNDS)
    shared = {"threads": threads, "backend": pair.backend, "limits": limits}
    keep(module_row(pair.op, workload.name, dtype, timings, errors, moved, **shared))
