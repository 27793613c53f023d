"""What the backend `cuda` of the resampling convolutions asks of its module, against the fp64 oracle."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from causalvae_kernels import BackendUnavailable, downsample_conv, explain, upsample_conv
from causalvae_kernels.core import native
from causalvae_kernels.ops.downsample_conv import spec as downsample_spec
from causalvae_kernels.ops.upsample_conv import cuda, spec
from causalvae_kernels.ops.upsample_conv.cuda import split_kernels
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
from tests.support.cuda_stand_in import HALVES

if native.why_no_cpu() is not None:
    pytest.skip(f"the stand-in needs the CPU module: {native.why_no_cpu()}", allow_module_level=True)

LAST = "channels_last_3d"
BOTH, TIME, SPACE = (2, 2, 2), (2, 1, 1), (1, 2, 2)


def in_eights(case):
    """The same case with channels in eights."""
    batch, channels, *size = case.shape
    return replace(
        case, shape=(batch, -(-channels // 8) * 8, *size), out_channels=-(-case.out_channels // 8) * 8
    )


MORE = (
    UpsampleCase("two frames of zeros", (1, 8, 2, 5, 6), 8, 3, options={"temporal_mode": "zeros"}),
    UpsampleCase(
        "one frame of zeros", (1, 8, 1, 5, 6), 8, 3, layout=LAST, options={"temporal_mode": "zeros"}
    ),
    UpsampleCase("one frame, space", (1, 8, 1, 5, 6), 8, 3, layout=LAST),
    UpsampleCase("one frame twice", (2, 8, 1, 5, 6), 8, 3, BOTH, options={"first_chunk": False}),
)


@pytest.mark.parametrize("module", ["90a"], indirect=True)
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("last", [False, True], ids=["weight", "weight in channels_last_3d"])
@pytest.mark.parametrize("case", [*map(in_eights, UPSAMPLE_CASES), *MORE], ids=lambda c: c.name)
def test_upsampling_against_the_oracle(case, last, half, module, seed):
    call = make_upsample_call(case, half, seed)
    if last:
        call["weight"] = call["weight"].contiguous(memory_format=torch.channels_last_3d)
    comparison = compare_upsample(call, "cuda")
    assert comparison.passed, comparison
    assert module.convolutions


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("case", [*map(in_eights, DOWNSAMPLE_CASES)], ids=lambda c: c.name)
def test_downsampling_against_the_oracle(case, half, module, seed):
    call = make_downsample_call(case, half, seed)
    comparison = compare_downsample(call, "cuda")
    assert comparison.passed, comparison
    shapes = call["x"].shape, call["weight"].shape
    assert 2 * module.multiplications == downsample_spec.flops(*shapes, case.compress_time)


# High parts and low ones, of the taps of a kernel of 3 x 3 or 3 x 3 x 3; the floor has half as many.
TAPS = {
    "space": (1, SPACE, 8),
    "space, three frames": (3, SPACE, 24),
    "time and space": (3, BOTH, 16),
    "time": (3, TIME, 27),
    "frames repeated": (1, BOTH, 8),
    "nothing but copies": (1, TIME, 9),
}


@pytest.mark.parametrize("module", ["90a"], indirect=True)
@pytest.mark.parametrize(("kernel_frames", "scale", "taps"), TAPS.values(), ids=TAPS)
def test_the_multiplications_are_those_that_are_told(kernel_frames, scale, taps, module, seed):
    case = UpsampleCase(
        "count", (1, 8, 4, 5, 6), 16, kernel_frames, scale, LAST, options={"first_chunk": False}
    )
    call = make_upsample_call(case, torch.bfloat16, seed)
    upsample_conv(**call, backend="cuda")
    floor = spec.flops(call["x"].shape, call["weight"].shape, scale, first_chunk=False)
    least = spec.folded_kernel(call["weight"].shape[2:], scale)
    assert 2 * module.multiplications * least[0] * least[1] * least[2] == floor * taps


@pytest.mark.parametrize("module", ["90a"], indirect=True)
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("scale", spec.SCALES, ids=str)
@pytest.mark.parametrize("kind", CANCELLING)
def test_folds_keep_their_digits_where_sums_cancel(kind, scale, half, module, monkeypatch, seed):
    call = cancelling_call(kind, scale, half, seed)
    got, reference = (upsample_conv(**call, backend=b) for b in ("cuda", "reference"))
    doubled = call | {name: call[name].double() for name in ("x", "weight")}
    oracle = upsample_conv(**doubled, backend="reference")
    comparison = compare(got, reference, oracle)
    assert comparison.passed, comparison
    monkeypatch.setattr(
        cuda, "split_kernels", lambda *given: [(high, None) for high, _ in split_kernels(*given)]
    )
    rounded_once = upsample_conv(**call, backend="cuda")
    assert not compare(rounded_once, reference, oracle).passed


@pytest.mark.parametrize("module", ["90a"], indirect=True)
def test_channels_last_frames_between_zeros_are_read_where_they_lie(module, seed):
    case = UpsampleCase("in place", (1, 8, 3, 5, 6), 16, layout=LAST)
    upsample_conv(**make_upsample_call(case, torch.bfloat16, seed), backend="cuda")
    down = DownsampleCase("in place", (1, 8, 3, 5, 6), 16, layout=LAST)
    downsample_conv(**make_downsample_call(down, torch.bfloat16, seed), backend="cuda")
    assert module.written == 0 and len(module.convolutions) == 9  # four phases, each in two parts, and one


def reason(op, x, weight, **options):
    return dict(explain(op, x.to("meta"), weight.to("meta"), **options, backend="cuda").rows)["cuda"]


def test_what_the_kernels_do_not_know_is_a_sentence(module):
    x, weight = torch.zeros(1, 8, 3, 6, 5).bfloat16(), torch.zeros(8, 8, 1, 3, 3).bfloat16()
    on_8x = native.cuda_arch(x.device) == "80"
    words = (
        "that a launch writes lie two apart in the output, and the kernel for 8.x"
        if on_8x
        else "runs this call"
    )
    assert words in reason("upsample_conv", x, weight)
    assert reason("downsample_conv", x, weight) == "runs this call"
    for op in ("upsample_conv", "downsample_conv"):
        assert "knows bfloat16 and float16, not torch.float32" in reason(op, x.float(), weight.float())
        assert "multiples of 8 input channels, not 3" in reason(op, x[:, :3], weight[:, :3])
        assert "multiples of 8 output channels, not 3" in reason(op, x, weight[:3])
        assert "precision 'exact'" in reason(op, x, weight, precision="exact")
        assert re.search(
            "has [0-9]+ pixels", reason(op, x[..., :1, :1].expand(2**9, 8, 3, 2**12, 2**12), weight)
        )


def test_tensors_on_the_cpu_are_refused():
    x, weight = torch.zeros(1, 8, 2, 4, 4).bfloat16(), torch.zeros(8, 8, 1, 3, 3).bfloat16()
    expected = native.why_no_cuda(torch.device("cpu"))
    for op in (upsample_conv, downsample_conv):
        with pytest.raises(BackendUnavailable) as caught:
            op(x, weight, backend="cuda")
        assert expected in str(caught.value)
