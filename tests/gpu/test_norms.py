"""The norm ops on a GPU: parity of every backend, graphs, and the same bits every time."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels import explain
from causalvae_kernels.parity import compare_norm
from causalvae_kernels.parity.norms import NORMS
from causalvae_kernels.workloads import NORM_CASES, NormCase, in_buffer, make_norm_call

if not torch.cuda.is_available():
    pytest.skip("torch sees no NVIDIA GPU", allow_module_level=True)

LAST = "channels_last_3d"
# Channels and sizes of real models: several pieces of statistics, several tiles, their tails.
WIDE = (
    NormCase("512 channels, latent size", (1, 512, 3, 60, 90), 32, (2, 60, 90), LAST),
    NormCase("256, four times the latent", (1, 256, 4, 120, 180), 32, (2, 60, 90), LAST),
    NormCase("128, far from zero", (1, 128, 3, 240, 360), 32, (2, 60, 90), LAST, mean=30.0),
    NormCase("96, contiguous", (2, 96, 2, 60, 104), 32, (1, 60, 104)),
    NormCase("160", (1, 160, 2, 88, 160), 32, (2, 44, 80), LAST),
    NormCase("1024", (1, 1024, 1, 44, 80), 32, (1, 44, 80), LAST),
    NormCase("1280, more than a block", (1, 1280, 1, 9, 11), 32, None, LAST),
    NormCase("few groups of many pieces", (1, 64, 5, 256, 256), 1, (3, 64, 64), LAST),
)


@pytest.fixture(params=sorted(NORMS))
def op(request):
    """The name of an op."""
    return request.param


@pytest.fixture(params=["aten", "triton"])
def backend(request):
    """Every backend of the norms that runs on a GPU."""
    return request.param


def skip_unless_it_can(op, call, backend):
    answer = explain(op, **call, backend=backend)
    if answer.chosen != backend:
        pytest.skip(dict(answer.rows)[backend])


@pytest.mark.parametrize("in_place", [False, True], ids=["fresh", "in place"])
@pytest.mark.parametrize("case", (*NORM_CASES, *WIDE), ids=lambda c: c.name)
def test_parity(case, op, dtype, in_place, backend, seed):
    call = make_norm_call(op, case, dtype, seed, "cuda")
    skip_unless_it_can(op, call, backend)
    comparison = compare_norm(op, call, backend, in_place=in_place)
    assert comparison.passed, comparison


def test_triton_runs(op):
    """The skips above would hide a backend that runs nothing."""
    call = make_norm_call(op, WIDE[0], torch.bfloat16, 0, "cuda")
    assert explain(op, **call, backend="triton").chosen == "triton"


@pytest.mark.parametrize("case", [WIDE[2], WIDE[3]], ids=lambda c: c.name)
def test_the_same_bits_every_time(case, op, seed):
    call = make_norm_call(op, case, torch.bfloat16, seed, "cuda")
    first = NORMS[op][0](**call, backend="triton")
    assert all(torch.equal(NORMS[op][0](**call, backend="triton"), first) for _ in range(5))


def test_a_captured_graph_gives_the_same_bits(op, backend, seed):
    call = make_norm_call(op, WIDE[1], torch.bfloat16, seed, "cuda")
    buffer = in_buffer(torch.zeros_like(call["x"]), 2)

    def run() -> torch.Tensor:
        NORMS[op][1](buffer, **call, backend=backend)
        return NORMS[op][0](**call, backend=backend)

    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        call["x"].copy_(make_norm_call(op, WIDE[1], torch.bfloat16, seed + 1, "cuda")["x"])
        captured.fill_(float("nan"))
        buffer.body.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        written = buffer.body.clone()
        assert torch.equal(captured, run()) and torch.equal(written, buffer.body)
