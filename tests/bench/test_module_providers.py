"""diffusers' norms and upsamplers and ours give one result, and a wrong one is not timed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from causalvae_kernels.bench.module_providers import BASELINES, INTO, OURS, norm_pair, upsample_pair
from causalvae_kernels.bench.record import make_record, module_row
from causalvae_kernels.bench.timing import Timing
from causalvae_kernels.bench.traffic import count_traffic
from causalvae_kernels.parity import ParityFailure, check_module
from causalvae_kernels.workloads import (
    NORM_WORKLOADS,
    UPSAMPLE_WORKLOADS,
    NormWorkload,
    UpsampleWorkload,
)

pytest.importorskip("diffusers")

NORMS = (
    NormWorkload("spatial_norm", 64, (5, 8, 12), (2, 2, 3)),
    NormWorkload("spatial_norm", 32, (4, 8, 8), (2, 4, 4)),
    NormWorkload("group_norm", 64, (3, 8, 9)),
    NormWorkload("rms_norm", 24, (2, 7, 8)),
)
UPSAMPLERS = (
    UpsampleWorkload("CogVideoX", 16, 24, (3, 8, 12), (2, 2, 2)),
    UpsampleWorkload("CogVideoX", 16, 16, (2, 8, 9), (2, 2, 2)),
    UpsampleWorkload("CogVideoX", 8, 9, (2, 8, 8), (1, 2, 2)),
    UpsampleWorkload("Wan", 16, 8, (2, 8, 10), (1, 2, 2)),
    UpsampleWorkload("HunyuanVideo", 16, 16, (3, 8, 8), (2, 2, 2)),
)
PAIRS = [(norm_pair, w) for w in NORMS] + [(upsample_pair, w) for w in UPSAMPLERS]


def check(pair):
    return check_module(pair.providers(), pair.oracle(), OURS, pair.factor, pair.long_sum, "tiny")


@pytest.fixture(params=PAIRS, ids=lambda p: f"{p[1].name}-{p[0].__name__}")
def make(request):
    """A maker of pairs, and a workload for it."""
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parity_of_every_provider(make, dtype, backend, seed):
    pair = make[0](make[1], dtype, seed, backend=backend)
    assert pair.backend == backend
    providers = pair.providers()
    names = (*BASELINES, *OURS) if pair.into else (*BASELINES, *OURS[:2])
    assert tuple(providers) == names
    errors = check(pair)
    assert tuple(errors) == names and all(0 < error < 0.05 for error in errors.values())
    shapes = {tuple(provider().shape) for provider in providers.values()}
    assert len(shapes) == 1 and not any(p().requires_grad for p in providers.values())


def test_a_wrong_result_is_not_timed(make, seed):
    pair = make[0](make[1], torch.float32, seed, backend="aten")
    wrong = dataclasses.replace(pair, ours=lambda x: pair.ours(x) * 1.001)
    with pytest.raises(ParityFailure, match="no timing without parity: ours, tiny"):
        check(wrong)


def test_a_row(seed):
    pair = norm_pair(NORMS[0], torch.bfloat16, seed, backend="cpu")
    providers = pair.providers()
    moved = {name: count_traffic(provider).bytes for name, provider in providers.items()}
    assert moved[BASELINES[0]] > 2 * moved[INTO] >= 4 * pair.x.nbytes
    times = {name: Timing(name, (2.0 if name in BASELINES else 1.0,)) for name in providers}
    errors = dict.fromkeys(providers, 1e-3)
    limits = {"fma_gflops": None, "copy_gbps": 1.0}
    row = module_row(
        pair.op, "w", torch.bfloat16, times, errors, moved, threads=1, backend="cpu", limits=limits
    )
    assert row["speedup_p50"][INTO] == dict.fromkeys(BASELINES, 2.0)
    ours = row["providers"]["ours"]
    assert ours["gbps"] == pytest.approx(moved["ours"] / 1e-3 / 1e9) and ours["bytes"] == moved["ours"]
    assert ours["percent_of_limit"] == pytest.approx(100 * ours["gbps"])
    assert row["bytes_ratio"] == moved[BASELINES[0]] / min(moved[name] for name in OURS)
    assert make_record([row], {1: limits})["rows"] == [row]


def test_names_are_unique():
    assert len({(w.op, w.name) for w in NORM_WORKLOADS}) == len(NORM_WORKLOADS)
    assert len({w.name for w in UPSAMPLE_WORKLOADS}) == len(UPSAMPLE_WORKLOADS)
