"""What a call of the convolution costs beside its kernel: Python calls and time, beside cat and `F.conv3d`.

The convolution is so small that its kernel is a part of the time only; on a GPU every call is like that.
"""

from __future__ import annotations

import cProfile
import pstats
import time

import torch
import torch.nn.functional as F

from causalvae_kernels import causal_conv3d
from causalvae_kernels.bench.timing import percentile

MOST_CALLS, MOST_TIMES = 40, 2.0
ROUNDS, CALLS = 41, 500


def providers():
    """Return the two, for 8 channels of 2x4x4 with the state of the chunk before."""
    x, state = torch.randn(1, 8, 2, 4, 4), torch.randn(1, 8, 2, 4, 4)
    weight, bias = torch.randn(8, 8, 3, 3, 3), torch.randn(8)

    def ours():
        return causal_conv3d(x, weight, bias, initial_state=state, return_final_state=True)

    def frameworks():
        return F.conv3d(torch.cat([state, x], 2), weight, bias, padding=(0, 1, 1))

    return ours, frameworks


def python_calls(work) -> int:
    """Return how many functions are called, those written in C counted, `work` and the profiler's end not."""
    profile = cProfile.Profile()
    profile.enable()
    work()
    profile.disable()
    return pstats.Stats(profile).total_calls - 2


@torch.inference_mode()
def test_a_small_convolution_beside_cat_and_conv3d(benchmark):
    ours, frameworks = providers()
    assert torch.allclose(ours()[0], frameworks(), atol=1e-4)
    calls = python_calls(ours)

    ratios, samples = [], []
    for turn in range(ROUNDS):
        seconds = {}
        for work in (ours, frameworks)[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            for _ in range(CALLS):
                work()
            seconds[work] = (time.perf_counter() - begin) / CALLS
        ratios.append(seconds[ours] / seconds[frameworks])
        samples.append(seconds[ours])
    benchmark.extra_info |= {
        "python_calls": calls,
        "threads": torch.get_num_threads(),
        "us": percentile(samples, 50) * 1e6,
        "times_cat_and_conv3d": {p: percentile(ratios, p) for p in (20, 50, 80)},
    }
    benchmark.pedantic(ours, rounds=5, iterations=CALLS)
    assert calls <= MOST_CALLS
    assert percentile(ratios, 50) <= MOST_TIMES
