"""Parity of every backend on a GPU: awkward shapes, dtypes, graphs, streams, tensors of 2^31 elements."""

from __future__ import annotations

import threading

import pytest
import torch

from causalvae_kernels import FrameBuffer, causal_conv3d, causal_pad3d, causal_pad3d_
from causalvae_kernels.parity import compare, compare_conv, compare_pad
from causalvae_kernels.workloads import (
    CONV_CASES,
    PAD_CASES,
    in_buffer,
    make_conv_call,
    make_pad_call,
)
from tests.support.gpu_cases import WIDE

from .conftest import skip_unless_it_can

if not torch.cuda.is_available():
    pytest.skip("torch sees no NVIDIA GPU", allow_module_level=True)


@pytest.mark.parametrize("case", (*CONV_CASES, *WIDE), ids=lambda c: c.name)
def test_convolution(case, dtype, gpu_backend, seed):
    call = make_conv_call(case, dtype, seed, "cuda")
    skip_unless_it_can("causal_conv3d", gpu_backend, **call)
    comparison = compare_conv(call, gpu_backend)
    assert comparison.passed, comparison


@pytest.mark.parametrize("case", WIDE, ids=lambda c: c.name)
def test_convolution_into_a_frame_buffer(case, gpu_backend, seed):
    """The bits of the call that allocates; the frames in front stay as they are."""
    call = make_conv_call(case, torch.bfloat16, seed, "cuda")
    skip_unless_it_can("causal_conv3d", gpu_backend, **call)
    expected = causal_conv3d(**call, backend=gpu_backend)
    last = {"memory_format": torch.channels_last_3d}
    buffer = FrameBuffer.empty(expected.shape, head_room=2, dtype=expected.dtype, device="cuda", **last)
    skip_unless_it_can("causal_conv3d", gpu_backend, **call, out=buffer.body)
    buffer.storage.fill_(float("nan"))
    causal_conv3d(**call, out=buffer, backend=gpu_backend)
    assert torch.equal(buffer.body, expected)
    assert buffer.storage[:, :, :2].isnan().all()


def test_each_backend_runs(gpu_backend):
    """The skips above would hide a backend that runs nothing."""
    call = make_conv_call(WIDE[1], torch.bfloat16, 0, "cuda")
    assert compare_conv(call, gpu_backend).passed
    pad = make_pad_call(PAD_CASES[3], torch.bfloat16, 0, "cuda")
    assert compare_pad(pad, gpu_backend, in_place=True).passed
    assert compare_pad(pad, gpu_backend, in_place=False).passed


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copied"])
@pytest.mark.parametrize("case", PAD_CASES, ids=lambda c: c.name)
@pytest.mark.parametrize(
    "kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8], ids=str
)
def test_padding(case, kind, in_place, gpu_backend, seed):
    call = make_pad_call(case, kind, seed, "cuda")
    comparison = compare_pad(call, gpu_backend, in_place=in_place)
    assert comparison.passed, comparison


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_captured_graph_gives_the_same_bits(dtype, gpu_backend, seed):
    call = make_conv_call(WIDE[0], dtype, seed, "cuda")
    skip_unless_it_can("causal_conv3d", gpu_backend, **call)
    buffer = in_buffer(call["x"], 2)

    def run() -> tuple[torch.Tensor, ...]:
        causal_pad3d_(buffer, initial_state=call["initial_state"], backend=gpu_backend)
        padded = causal_pad3d(call["x"], 2, 1, backend=gpu_backend)
        return causal_conv3d(**call, backend=gpu_backend), buffer.storage, padded

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
        fresh = make_conv_call(WIDE[0], dtype, seed + 1, "cuda")
        for name in ("x", "initial_state", "weight", "bias"):
            call[name].copy_(fresh[name])
        buffer.body.copy_(fresh["x"])
        expected = [result.clone() for result in run()]
        for result in captured:
            # Of the buffer only what the replay has to write: the frames behind it are its input.
            (result[:, :, :2] if result is buffer.storage else result).fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
    for got, wanted in zip(captured, expected, strict=True):
        assert torch.equal(got, wanted)


def test_two_threads_on_two_streams(gpu_backend, seed):
    calls = [make_conv_call(WIDE[1], torch.bfloat16, seed + i, "cuda") for i in range(2)]
    skip_unless_it_can("causal_conv3d", gpu_backend, **calls[0])
    expected = [causal_conv3d(**call, backend=gpu_backend) for call in calls]
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            for _ in range(10):
                got = causal_conv3d(**calls[index], backend=gpu_backend)
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
def test_more_than_two_to_the_31_elements(gpu_backend):
    """The last frames of a tensor whose offsets do not fit into 32 bits."""
    shape = (1, 64, 36, 1024, 1024)
    elements = 64 * 36 * 2**20
    assert elements > 2**31
    free, _ = torch.cuda.mem_get_info()
    if free < 8 * elements:
        pytest.skip(f"{free / 2**30:.0f} GiB are free, the test takes {8 * elements / 2**30:.0f}")
    buffer = FrameBuffer.empty(
        shape, head_room=2, dtype=torch.bfloat16, device="cuda", memory_format=torch.channels_last_3d
    )
    frame = torch.randn(1, 64, 1, 1024, 1024, device="cuda").to(torch.bfloat16)
    for t in range(shape[2]):
        buffer.body[:, :, t : t + 1] = frame.roll(t, 1)
    buffer.storage[:, :, :2] = float("nan")
    causal_pad3d_(buffer, backend=gpu_backend)
    assert torch.equal(buffer.storage[:, :, 0], frame[:, :, 0])
    assert torch.equal(buffer.body[:, :, -1], frame.roll(shape[2] - 1, 1)[:, :, 0])
    weight = (torch.randn(8, 64, 3, 3, 3, device="cuda") / 41).to(torch.bfloat16)
    skip_unless_it_can("causal_conv3d", gpu_backend, buffer.storage, weight, temporal_mode="valid")
    with torch.no_grad():
        y = causal_conv3d(buffer, weight, backend=gpu_backend)[:, :, -2:]
        tail = buffer.body[:, :, -4:].clone()
        options = {"temporal_mode": "valid"}
        reference = causal_conv3d(tail, weight, **options, backend="reference")
        oracle = causal_conv3d(tail.double(), weight.double(), **options, backend="reference")
    comparison = compare(y.contiguous(), reference, oracle)
    assert comparison.passed, comparison
