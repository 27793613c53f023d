"""The resampling convolutions on a GPU, all of them Triton's: parity, graphs, folds, `tune`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from causalvae_kernels import downsample_conv, explain, upsample_conv
from causalvae_kernels.bench.tune_gpu_resampling import ways
from causalvae_kernels.parity import compare, compare_downsample, compare_upsample
from causalvae_kernels.workloads import (
    DOWNSAMPLE_CASES,
    UPSAMPLE_CASES,
    DownsampleCase,
    UpsampleCase,
    make_downsample_call,
    make_upsample_call,
)
from tests.support.cancelling import CANCELLING, cancelling_call
from tests.support.windows import windows_for

from .conftest import skip_unless_it_can

if not torch.cuda.is_available():
    pytest.skip("torch sees no NVIDIA GPU", allow_module_level=True)

LAST = "channels_last_3d"
SPACE, BOTH, TIME = (1, 2, 2), (2, 2, 2), (2, 1, 1)
LATER, EDGE = {"first_chunk": False}, {"spatial_mode": "replicate"}
# Channels and sizes of real models, so that whole tiles, their tails and several blocks all occur.
WIDE_UP = (
    UpsampleCase("512, frames repeated", (1, 512, 2, 15, 23), 512, 1, BOTH, LAST, options=LATER),
    UpsampleCase("256, space, batch", (2, 256, 3, 30, 45), 256, 1, SPACE, LAST),
    UpsampleCase("384 to 192, space", (1, 384, 2, 30, 26), 192, 1, SPACE, LAST),
    UpsampleCase("512 to 256, pairs", (1, 512, 2, 20, 30), 256, 3, TIME, LAST, True, options=LATER),
    UpsampleCase("256, first chunk, time", (2, 256, 3, 20, 30), 128, 3, TIME, LAST),
    UpsampleCase("512, time and space", (1, 512, 3, 16, 16), 512, 3, BOTH, LAST, options=EDGE),
    UpsampleCase("256, all, state", (1, 256, 2, 17, 19), 160, 3, BOTH, LAST, True, options=LATER | EDGE),
    UpsampleCase("256, one frame", (1, 256, 1, 30, 30), 256, 3, BOTH, LAST, options=EDGE),
    UpsampleCase("256, three frames", (1, 256, 3, 30, 30), 256, 3, SPACE, LAST, options=EDGE),
    UpsampleCase("96 to rgb", (1, 96, 2, 30, 40), 3, 1, SPACE, LAST),
)
WIDE_DOWN = (
    DownsampleCase("128, pairs", (1, 128, 4, 62, 90), 128, True, LAST),
    DownsampleCase("256, pairs and a first frame", (2, 256, 3, 31, 45), 256, True, LAST),
    DownsampleCase("384", (1, 384, 2, 40, 52), 384, False, LAST),
    DownsampleCase("96, contiguous", (1, 96, 2, 60, 104), 96),
)
OPS = {
    "upsample_conv": (upsample_conv, make_upsample_call, WIDE_UP),
    "downsample_conv": (downsample_conv, make_downsample_call, WIDE_DOWN),
}


@pytest.fixture(params=["aten", "triton"])
def gpu_backend(request):
    """Every backend of these ops that runs on a GPU."""
    return request.param


@pytest.mark.parametrize("case", UPSAMPLE_CASES, ids=lambda c: c.name)
def test_awkward_upsampling(case, gpu_backend, seed):
    call = make_upsample_call(case, torch.bfloat16, seed, "cuda")
    skip_unless_it_can("upsample_conv", gpu_backend, **call)
    comparison = compare_upsample(call, gpu_backend)
    assert comparison.passed, comparison


@pytest.mark.parametrize("case", WIDE_UP, ids=lambda c: c.name)
def test_upsampling(case, dtype, gpu_backend, seed):
    call = make_upsample_call(case, dtype, seed, "cuda")
    skip_unless_it_can("upsample_conv", gpu_backend, **call)
    comparison = compare_upsample(call, gpu_backend)
    assert comparison.passed, comparison


@pytest.mark.parametrize("case", (*DOWNSAMPLE_CASES, *WIDE_DOWN), ids=lambda c: c.name)
def test_downsampling(case, dtype, gpu_backend, seed):
    call = make_downsample_call(case, dtype, seed, "cuda")
    skip_unless_it_can("downsample_conv", gpu_backend, **call)
    comparison = compare_downsample(call, gpu_backend)
    assert comparison.passed, comparison


@pytest.mark.parametrize("op", OPS)
def test_into_a_window(op, dtype, gpu_backend, seed):
    """What the call that allocates gives, perhaps by another tile; nothing around it is touched."""
    function, make, cases = OPS[op]
    for case in cases[:6]:
        call = make(case, dtype, seed, "cuda")
        skip_unless_it_can(op, gpu_backend, **call)
        expected = function(**call, backend=gpu_backend)
        for out, untouched in windows_for(expected):
            assert function(**call, out=out, backend=gpu_backend) is out
            torch.testing.assert_close(getattr(out, "body", out), expected, rtol=2**-7, atol=2**-7)
            assert untouched()


@pytest.mark.parametrize("op", OPS)
def test_each_backend_runs(op, gpu_backend):
    """The skips above would hide a backend that runs nothing."""
    _, make, cases = OPS[op]
    call = make(cases[1], torch.bfloat16, 0, "cuda")
    assert explain(op, **call, backend=gpu_backend).chosen == gpu_backend


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [SPACE, BOTH, TIME], ids=str)
@pytest.mark.parametrize("kind", CANCELLING)
def test_folds_keep_their_digits_where_sums_cancel(kind, scale, half, gpu_backend, seed):
    call = {
        k: v.cuda() if isinstance(v, torch.Tensor) else v
        for k, v in cancelling_call(kind, scale, half, seed).items()
    }
    skip_unless_it_can("upsample_conv", gpu_backend, **call)
    got, reference = (upsample_conv(**call, backend=b) for b in (gpu_backend, "reference"))
    doubled = call | {name: call[name].double() for name in ("x", "weight")}
    comparison = compare(got, reference, upsample_conv(**doubled, backend="reference"))
    assert comparison.passed, comparison


@pytest.mark.parametrize("op", OPS)
def test_a_captured_graph_gives_the_same_bits(op, gpu_backend, seed):
    """Weights are folded at every replay: what is captured must not hold those of the capture."""
    function, make, cases = OPS[op]
    call = make(cases[0], torch.bfloat16, seed, "cuda")
    skip_unless_it_can(op, gpu_backend, **call)

    def run() -> torch.Tensor:
        return function(**call, backend=gpu_backend)

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
        fresh = make(cases[0], torch.bfloat16, seed + 1, "cuda")
        for name in ("x", "weight", "bias"):
            call[name].copy_(fresh[name])
        expected = run().clone()
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
    assert torch.equal(captured, expected)


@pytest.mark.parametrize("op", OPS)
def test_every_way_that_tune_measures(op, seed):
    function, make, cases = OPS[op]
    call = make(cases[2], torch.bfloat16, seed, "cuda")
    doubled: dict[str, Any] = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    with torch.no_grad():
        reference, oracle = (function(**c, backend="reference") for c in (call, doubled))
        found = ways(op, call)
        assert found
        for way in found:
            comparison = compare(way.run(), reference, oracle)
            assert comparison.passed, (way.words, comparison)
