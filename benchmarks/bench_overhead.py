"""What a call of the convolution costs beside its kernel: Python calls and time, beside cat and `F.conv3d`.

The convolution is so small that its kernel is a part of the time only; on a GPU every call is like that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from causalvae_kernels import causal_conv3d
from causalvae_kernels.bench.timing import percentile, python_calls, time_providers

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


def many(work):
    """Return so many calls as one: a single one is too short for a clock."""

    def run():
        for _ in range(CALLS):
            work()

    return run


@torch.inference_mode()
def test_a_small_convolution_beside_cat_and_conv3d(benchmark):
    ours, frameworks = providers()
    assert torch.allclose(ours()[0], frameworks(), atol=1e-4)
    calls = python_calls(ours)
    timings = time_providers({"ours": many(ours), "cat and conv3d": many(frameworks)}, repeats=ROUNDS)
    pairs = zip(*(timing.samples_ms for timing in timings.values()), strict=True)
    ratios = [a / b for a, b in pairs]
    benchmark.extra_info |= {
        "python_calls": calls,
        "threads": torch.get_num_threads(),
        "us": timings["ours"].p50_ms * 1e3 / CALLS,
        "times_cat_and_conv3d": {p: percentile(ratios, p) for p in (20, 50, 80)},
    }
    benchmark.pedantic(ours, rounds=5, iterations=CALLS)
    assert calls <= MOST_CALLS
    assert percentile(ratios, 50) <= MOST_TIMES
