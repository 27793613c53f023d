"""The norm ops on a GPU, where they are Triton's: parity, graphs, streams, and the same bits every time."""

from __future__ import annotations

import threading

import pytest
import torch

from causalvae_kernels import FrameBuffer, explain
from causalvae_kernels.parity import compare_norm
from causalvae_kernels.parity.norms import NORMS
from causalvae_kernels.workloads import NORM_CASES, NormCase, in_buffer, make_norm_call

from .conftest import skip_unless_it_can

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
    NormCase("384, contiguous", (1, 384, 2, 30, 52), 32, (1, 30, 52)),
    NormCase("1024, contiguous", (1, 1024, 1, 22, 40), 32, (1, 22, 40)),
    NormCase("1030, contiguous, more than registers hold", (1, 1030, 1, 9, 13), 5),
    NormCase("2100, several tiles of channels", (1, 2100, 1, 9, 11), 6, None, LAST),
    NormCase("odd channels", (2, 67, 3, 30, 45), 67, (2, 30, 45), LAST),
)


@pytest.fixture(params=sorted(NORMS))
def op(request):
    """The name of an op."""
    return request.param


@pytest.fixture(params=["aten", "triton"])
def gpu_backend(request):
    """Every backend of these ops that runs on a GPU."""
    return request.param


@pytest.mark.parametrize("in_place", [False, True], ids=["fresh", "in place"])
@pytest.mark.parametrize("case", (*NORM_CASES, *WIDE), ids=lambda c: c.name)
def test_parity(case, op, dtype, in_place, gpu_backend, seed):
    call = make_norm_call(op, case, dtype, seed, "cuda")
    skip_unless_it_can(op, gpu_backend, **call)
    comparison = compare_norm(op, call, gpu_backend, in_place=in_place)
    assert comparison.passed, comparison


def test_it_runs(op):
    """The skips above would hide a backend that runs nothing."""
    call = make_norm_call(op, WIDE[0], torch.bfloat16, 0, "cuda")
    assert explain(op, **call, backend="triton").chosen == "triton"


@pytest.mark.parametrize("case", [WIDE[2], WIDE[3]], ids=lambda c: c.name)
def test_the_same_bits_every_time(case, op, seed):
    call = make_norm_call(op, case, torch.bfloat16, seed, "cuda")
    skip_unless_it_can(op, "triton", **call)
    first = NORMS[op](**call, backend="triton")
    assert all(torch.equal(NORMS[op](**call, backend="triton"), first) for _ in range(5))


def test_two_threads_on_two_streams(op, seed):
    calls = [make_norm_call(op, WIDE[1], torch.bfloat16, seed + i, "cuda") for i in range(2)]
    skip_unless_it_can(op, "triton", **calls[0])
    expected = [NORMS[op](**call, backend="triton") for call in calls]
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            for _ in range(10):
                got = NORMS[op](**calls[index], backend="triton")
                torch.cuda.current_stream().synchronize()
                if not torch.equal(got, expected[index]):
                    wrong.append(index)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.exhaustive
def test_more_than_two_to_the_31_elements(op, seed):
    """The last frames of a tensor whose offsets do not fit into 32 bits, written in place."""
    shape = (1, 64, 36, 1024, 1024)
    elements = 64 * 36 * 2**20
    assert elements > 2**31
    free, _ = torch.cuda.mem_get_info()
    if free < 4 * elements:
        pytest.skip(f"{free / 2**30:.0f} GiB are free, the test takes {4 * elements / 2**30:.0f}")
    call = make_norm_call(op, NormCase("", (1, 64, 2, 64, 64), 32), torch.bfloat16, seed, "cuda")
    frame = call.pop("x")[:, :, :1].repeat(1, 1, 1, 16, 16)
    last = {"memory_format": torch.channels_last_3d}
    buffer = FrameBuffer.empty(shape, head_room=0, dtype=torch.bfloat16, device="cuda", **last)
    buffer.body.copy_(frame.expand(shape))
    for name in {"scale", "shift"} & set(call):
        call[name] = call[name][:, :, :1].expand(-1, -1, 36, -1, -1)
    skip_unless_it_can(op, "triton", buffer.body, **call, out=buffer)
    with torch.no_grad():
        NORMS[op](buffer.body, **call, out=buffer, backend="triton")
        for name in {"scale", "shift"} & set(call):
            call[name] = call[name][:, :, :2]
        expected = NORMS[op](frame.expand(-1, -1, 2, -1, -1), **call, backend="triton")
    # Every frame is the first one, so that two of them have the statistics of all.
    assert torch.allclose(buffer.body[:, :, -2:].float(), expected.float(), rtol=2e-2, atol=2e-2)
    assert torch.equal(buffer.body[:, :, -1], buffer.body[:, :, 0])


def test_a_captured_graph_gives_the_same_bits(op, gpu_backend, seed):
    backend = gpu_backend
    call = make_norm_call(op, WIDE[1], torch.bfloat16, seed, "cuda")
    skip_unless_it_can(op, backend, **call)
    buffer = in_buffer(torch.zeros_like(call["x"]), 2)

    def run() -> torch.Tensor:
        NORMS[op](**call, out=buffer, backend=backend)
        return NORMS[op](**call, backend=backend)

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
