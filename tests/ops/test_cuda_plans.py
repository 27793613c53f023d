"""What the backend `cuda` asks of its module: every call, carried out on the host, against the fp64 oracle.

The stand-in for the module is that of `cuda_stand_in.py`. So folds, halos, states, layouts and copies are
tested where there is no GPU; the numbers of the tensor cores are not.
"""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from causalvae_kernels import (
    BackendUnavailable,
    FrameBuffer,
    causal_conv3d,
    causal_pad3d,
    causal_pad3d_,
    explain,
)
from causalvae_kernels.core import native
from causalvae_kernels.ops.causal_conv3d.backends import cuda as cuda_conv
from causalvae_kernels.ops.causal_pad3d.backends import cuda as cuda_pad
from causalvae_kernels.ops.causal_pad3d.spec import PadArgs
from causalvae_kernels.parity import compare, compare_conv, compare_pad
from causalvae_kernels.workloads import (
    CONV_CASES,
    PAD_CASES,
    ConvCase,
    in_buffer,
    make_conv_call,
    make_pad_call,
    with_layout,
)
from tests.support.cover import pairs
from tests.support.cuda_stand_in import HALVES


def widened(case):
    """The same case with channels in eights."""
    eights = [max(8, -(-n // 8) * 8) for n in (case.shape[1], case.out_channels)]
    shape = (case.shape[0], eights[0], *case.shape[2:])
    values = {f: getattr(case, f) for f in ("name", "kernel_size", "layout", "state", "bias", "residual")}
    return ConvCase(shape=shape, out_channels=eights[1], options=case.options, **values)


MORE = (
    ConvCase("one frame, zeros", (2, 8, 1, 6, 5), 16, options={"temporal_mode": "zeros"}),
    ConvCase("one frame, state", (1, 8, 1, 6, 5), 16, state=True, layout="channels_last_3d"),
    ConvCase("one frame, two taps", (1, 16, 1, 6, 5), 8, (2, 3, 3)),
    ConvCase("one frame, dilation", (1, 8, 1, 6, 5), 8, (4, 1, 1), options={"dilation": (3, 1, 1)}),
    ConvCase("one frame, replicate around", (1, 8, 1, 6, 5), 8, options={"spatial_mode": "replicate"}),
    ConvCase(
        "two frames of zeros, five taps", (1, 8, 2, 6, 5), 8, (5, 3, 3), options={"temporal_mode": "zeros"}
    ),
    ConvCase(
        "zeros, time stride", (1, 8, 3, 6, 5), 8, options={"temporal_mode": "zeros", "stride": (2, 1, 1)}
    ),
    ConvCase("channels last, zeros", (2, 24, 4, 6, 5), 8, layout="channels_last_3d", residual=True),
)


@pairs(case=[*map(widened, CONV_CASES), *MORE], last=[False, True], half=HALVES.values())
def test_convolution_against_the_oracle(case, last, half, module, seed):
    call = make_conv_call(case, half, seed)
    if last:
        call["weight"] = call["weight"].contiguous(memory_format=torch.channels_last_3d)
    comparison = compare_conv(call, "cuda")
    assert comparison.passed, comparison
    assert len(module.convolutions) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.int32, torch.float64], ids=str)
@pytest.mark.parametrize("case", PAD_CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("in_place", [False, True], ids=["fresh", "in place"])
def test_padding_gives_the_bits_of_the_reference(case, dtype, in_place, module, seed):
    comparison = compare_pad(make_pad_call(case, dtype, seed), "cuda", in_place=in_place)
    assert comparison.passed, comparison


# ---------------------------------------------------------------- folds


def test_one_frame_of_zeros_takes_one_tap_in_place(module, seed):
    call = make_conv_call(ConvCase("", (1, 8, 1, 6, 5), 8, layout="channels_last_3d"), torch.bfloat16, seed)
    call["weight"] = call["weight"].contiguous(memory_format=torch.channels_last_3d)
    causal_conv3d(**call, temporal_mode="zeros", backend="cuda")
    assert module.convolutions == [{"taps": (1, 3, 3), "frames": 1, "before": (0, 1, 1)}]
    assert module.written == 0


def test_one_replicated_frame_takes_two_taps(module, seed):
    call = make_conv_call(ConvCase("", (1, 8, 1, 6, 5), 8, layout="channels_last_3d"), torch.bfloat16, seed)
    causal_conv3d(**call, backend="cuda")
    assert module.convolutions == [{"taps": (2, 3, 3), "frames": 2, "before": (0, 1, 1)}]
    assert module.written == 2 * call["x"].nbytes


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_the_sum_of_taps_keeps_its_digits_where_they_cancel(half, module, seed):
    """A smooth input, and taps whose sum over time and space is small beside them: what edges look like."""
    generator = torch.Generator().manual_seed(seed)
    x = (1 + 0.01 * torch.randn(1, 32, 1, 12, 12, generator=generator)).to(half)
    weight = torch.randn(16, 32, 3, 3, 3, generator=generator)
    weight = (weight - weight.mean((1, 2, 3, 4), keepdim=True)).to(half)
    got = causal_conv3d(x, weight, spatial_mode="valid", backend="cuda")
    reference = causal_conv3d(x, weight, spatial_mode="valid", backend="reference")
    oracle = causal_conv3d(x.double(), weight.double(), spatial_mode="valid", backend="reference")
    assert compare(got, reference, oracle).passed
    rounded_once = weight.double().sum(2, keepdim=True).to(half)
    careless = F.conv3d(x.double(), rounded_once.double()).to(half)
    assert not compare(careless, reference, oracle).passed


# ---------------------------------------------------------------- copies


@pytest.mark.parametrize("options", [{"temporal_mode": "zeros"}, {"temporal_mode": "valid"}], ids=str)
def test_channels_last_frames_and_weights_are_read_where_they_lie(options, module, seed):
    case = ConvCase("", (1, 16, 4, 6, 5), 8, layout="channels_last_3d")
    call = make_conv_call(case, torch.bfloat16, seed) | options
    call["weight"] = call["weight"].contiguous(memory_format=torch.channels_last_3d)
    causal_conv3d(**call, backend="cuda")
    assert module.written == 0


def test_a_frame_buffer_has_its_border_written_and_nothing_else(module, seed):
    case = ConvCase("", (1, 16, 4, 6, 5), 8, layout="channels_last_3d", state=True)
    call = make_conv_call(case, torch.bfloat16, seed)
    x = call.pop("x")
    expected = causal_conv3d(x, **call, backend="reference")
    for halo in ((0, 0, 0, 0), (1, 1, 1, 1)):
        module.written = 0
        buffer = in_buffer(x, 2, halo)
        got = causal_conv3d(buffer, **call, backend="cuda")
        assert torch.allclose(got.float(), expected.float(), atol=0.1)
        assert module.written == buffer.storage.nbytes - x.nbytes
        assert module.convolutions[-1]["frames"] == 6


def test_a_state_is_put_in_front_by_one_pass(module, seed):
    call = make_conv_call(ConvCase("", (1, 16, 4, 6, 5), 8, state=True), torch.bfloat16, seed)
    causal_conv3d(**call, backend="cuda")
    assert module.written == call["x"].nbytes + call["initial_state"].nbytes


def test_a_window_is_readable_and_a_misaligned_one_is_not():
    large = torch.zeros(2, 16, 8, 9, 10, dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last_3d
    )
    assert cuda_conv.readable(large) and cuda_conv.readable(large[:, :, 1:6, 2:8, 1:9])
    assert cuda_conv.readable(large[:, :, :1, :1, :1]) and cuda_conv.readable(large[:, 8:])
    assert not cuda_conv.readable(large[:, 4:12])
    assert not cuda_conv.readable(large[:, ::2])
    assert not cuda_conv.readable(large.contiguous())
    assert not cuda_conv.readable(large[:, :, :1].expand(-1, -1, 3, -1, -1))
    assert not cuda_conv.readable(large.transpose(3, 4))
    odd = torch.zeros(2, 12, 8, 9, 10, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    assert not cuda_conv.readable(odd)


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "permuted"])
def test_a_misaligned_bias_and_a_residual_of_other_strides_are_copied(layout, module, seed):
    call = make_conv_call(ConvCase("", (1, 8, 3, 6, 5), 8), torch.float16, seed)
    call["bias"] = torch.randn(9).half()[1:]
    call["residual"] = with_layout(torch.randn(1, 8, 3, 6, 5).half(), layout)
    assert compare_conv(call, "cuda").passed


# ---------------------------------------------------------------- into memory that is there


@pytest.mark.parametrize("halo", [0, 1])
def test_into_a_window_of_a_larger_tensor(halo, module, seed):
    """A frame in front and a halo stay as they are; 8.x takes frames without a halo alone."""
    case = ConvCase("", (2, 16, 3, 6, 5), 8, layout="channels_last_3d", state=True, residual=True)
    call = make_conv_call(case, torch.bfloat16, seed)
    storage = torch.full((2, 8, 4, 6 + 2 * halo, 5 + 2 * halo), float("nan"), dtype=torch.bfloat16)
    storage = storage.contiguous(memory_format=torch.channels_last_3d)
    out = storage[:, :, 1:, halo : halo + 6, halo : halo + 5]
    if halo and native.cuda_arch(out.device) == "80":
        with pytest.raises(BackendUnavailable, match="'cuda' cannot run .* the output has a halo"):
            causal_conv3d(**call, out=out, backend="cuda")
        return
    assert causal_conv3d(**call, out=out, backend="cuda") is out
    assert torch.equal(out, causal_conv3d(**call, backend="cuda"))
    assert storage.isnan().sum() == storage.numel() - out.numel()


def test_an_output_in_another_layout_is_a_sentence(module, seed):
    call = make_conv_call(ConvCase("", (1, 8, 3, 6, 5), 8), torch.float16, seed)
    with pytest.raises(BackendUnavailable, match="'cuda' cannot run .* the kernel writes into windows of"):
        causal_conv3d(**call, out=torch.empty(1, 8, 3, 6, 5).half(), backend="cuda")


# ---------------------------------------------------------------- refusals


def reason(dtype=torch.bfloat16, shape=(1, 8, 3, 6, 5), out_channels=8, kernel=(3, 3, 3), **options):
    x = torch.zeros(shape, dtype=dtype, device="meta")
    weight = torch.zeros(out_channels, shape[1], *kernel, dtype=dtype, device="meta")
    return dict(explain(causal_conv3d, x, weight, backend="cuda", **options).rows)["cuda"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": torch.float32}, "knows bfloat16 and float16, not torch.float32"),
        ({"precision": "exact"}, "precision 'exact'"),
        ({"shape": (1, 3, 3, 6, 5)}, "multiples of 8 input channels, not 3"),
        ({"out_channels": 3}, "multiples of 8 output channels, not 3"),
        ({"kernel": (3, 3, 19)}, r"over 16 frames or pixels, and size \(3, 3, 19\) with .* over 18"),
        ({"dilation": (9, 1, 1)}, "over 18"),
        ({"shape": (1, 8, 2**9, 2**11, 2**11)}, "the output has 2147483648 pixels"),
    ],
)
def test_calls_that_the_kernels_do_not_know_are_sentences(options, sentence, module):
    assert reason() == "runs this call"
    assert re.search(f"cannot run this call: .*{sentence}", reason(**options))


def test_a_forced_call_raises_the_sentence(module):
    with pytest.raises(BackendUnavailable, match="knows bfloat16 and float16, not torch.float32"):
        causal_conv3d(torch.zeros(1, 8, 2, 3, 3), torch.zeros(8, 8, 3, 3, 3), backend="cuda")


def test_an_architecture_without_a_convolution_is_a_sentence(module, monkeypatch):
    monkeypatch.setattr(native, "cuda_arch", lambda device: "90")
    assert "this GPU runs that for 90" in reason()


def test_a_dtype_of_sixteen_bytes_and_a_huge_frame_are_sentences(module):
    x = torch.zeros(1, 2, 2, 3, 3, dtype=torch.complex128)
    with pytest.raises(BackendUnavailable, match="has 16 bytes, the kernel copies 1, 2, 4 or 8"):
        causal_pad3d(x, 1, backend="cuda")
    with pytest.raises(BackendUnavailable, match="has 16 bytes"):
        causal_pad3d_(in_buffer(x.abs().to(torch.complex128), 1), backend="cuda")
    huge = torch.zeros((), dtype=torch.uint8).expand(1, 2**15, 1, 2**8, 2**8)
    with pytest.raises(BackendUnavailable, match="a padded frame has 2181038080 elements"):
        causal_pad3d(huge, 1, (0, 0, 2, 2), backend="cuda")


def test_more_blocks_than_a_launch_has_are_a_sentence(module):
    """Many small frames; and rows of few pixels and channels, which a change of layout walks one by one."""
    one = torch.zeros((), dtype=torch.uint8)
    many = one.expand(2**15, 1, 2**16, 1, 1)
    with pytest.raises(BackendUnavailable, match="takes up to 2147516416 blocks, a launch has fewer than"):
        causal_pad3d(many, 1, backend="cuda")
    with pytest.raises(BackendUnavailable, match="takes up to 2147483648 blocks"):
        # Four gigabytes of addresses, of which nothing is read or written.
        causal_pad3d_(FrameBuffer(one.new_empty(2**16, 1, 2**16, 1, 1), 2**15), backend="cuda")
    assert reason(shape=(1, 512, 1, 2**11, 2**10)) == "runs this call"
    assert "a padded frame has 2147483648 elements" in reason(shape=(1, 512, 1, 2**11, 2**11))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(1, 1, 3, 1, 1), (2, 70, 2, 3, 40), (1, 3, 2, 70, 33), (2, 5, 4, 9, 130)])
def test_the_count_of_blocks_is_no_smaller_than_that_of_the_plan(dtype, size, module, monkeypatch):
    x = torch.zeros(size, dtype=dtype)
    args = PadArgs(x, None, 2, (0, 0, 0, 0), "replicate", "zeros")
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        out = torch.empty((size[0], size[1], size[2] + 2, *size[3:]), dtype=dtype)
        out = out.contiguous(memory_format=memory_format)
        transposes, _, blocks, _ = module.emulation.causal_pad3d(
            native.describe(out), native.describe(x), None, 2, (0, 0, 0, 0), "zeros", "zeros", dtype.itemsize
        )
        assert transposes is (memory_format == torch.channels_last_3d and size[1] > 1 and size[4] > 1)
        monkeypatch.setattr(cuda_pad, "_MOST_BLOCKS", blocks)
        assert "blocks" in cuda_pad.why_not(args, "high", None)
    monkeypatch.setattr(cuda_pad, "_MOST_BLOCKS", 8 * blocks)
    assert cuda_pad.why_not(args, "high", None) is None


def test_tensors_on_the_cpu_are_refused():
    x, weight = torch.zeros(1, 8, 2, 3, 3).bfloat16(), torch.zeros(8, 8, 3, 3, 3).bfloat16()
    expected = native.why_no_cuda(torch.device("cpu"))
    for call in (
        lambda: causal_conv3d(x, weight, backend="cuda"),
        lambda: causal_pad3d(x, 1, backend="cuda"),
        lambda: causal_pad3d_(in_buffer(x, 1), backend="cuda"),
    ):
        with pytest.raises(BackendUnavailable) as caught:
            call()
        assert expected in str(caught.value)
