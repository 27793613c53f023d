"""Rows of a record, made of given times."""

from __future__ import annotations

import torch

from causalvae_kernels.bench.record import conv_row
from causalvae_kernels.bench.timing import Timing
from causalvae_kernels.workloads import Workload

WORKLOAD = Workload("2x3-4x5x6", 2, 3, 4, 5, 6)
LIMITS = {"fma_gflops": 0.01, "copy_gbps": 0.001}


def timings(**samples):
    return {name.replace("_", " ", 1): Timing(name, tuple(values)) for name, values in samples.items()}


def conv(threads=1, dtype=torch.float32, limits=LIMITS):
    times = timings(
        diffusers=[4.0, 8.0, 6.0],
        diffusers_channels_last_3d=[2.0, 2.0, 2.0],
        ours=[2.0, 2.0, 1.0],
        ours_channels_last_3d=[1.0, 1.0, 1.0],
    )
    errors = dict.fromkeys(times, 1e-7)
    return conv_row(WORKLOAD, dtype, times, errors, threads=threads, backend="cpu", limits=limits)
