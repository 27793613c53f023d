"""`causal_pad3d_` in a `FrameBuffer` beside the `torch.cat` that diffusers pads with, one thread and two.

What is shown is the time against the bytes: the copy moves every frame, ours the ones in front. The
benchmarked function is ours; `torch.cat` runs before each of its rounds. Both give the same bits, which is
checked before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from causalvae_kernels.bench.providers import PAD_OURS, conv_call, pad_providers
from causalvae_kernels.bench.record import pad_row
from causalvae_kernels.bench.roofline import Limits
from causalvae_kernels.core.op import explain
from causalvae_kernels.parity import check_pad
from causalvae_kernels.workloads import GATED, WORKLOADS, in_buffer

DTYPES = (torch.float32, torch.bfloat16)
THREADS = (1, 2)
NAMES = (
    *GATED,
    *(name for name, workload in WORKLOADS.items() if name not in GATED and workload.kernel_size[0] > 1),
)
ROUNDS = 21


@pytest.mark.parametrize("threads", THREADS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.benchmark(group="causal_pad3d")
def test_causal_pad3d(
    name: str,
    dtype: torch.dtype,
    threads: int,
    limits: Limits,
    time_beside: Callable[..., Any],
    keep: Callable[..., None],
) -> None:
    workload = WORKLOADS[name]
    x = conv_call(workload, dtype, random.SystemRandom().randrange(2**31))["x"]
    frames = workload.kernel_size[0] - 1
    providers = pad_providers(x, frames)
    check_pad(providers, frames, f"{name} {dtype}")
    backend = explain("causal_pad3d_", in_buffer(x, frames)).chosen
    timings = time_beside(providers, PAD_OURS[0], ROUNDS)
    keep(pad_row(workload, dtype, timings, threads=threads, backend=backend, limits=limits))
