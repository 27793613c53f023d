"""The backend `triton` of the resampling convolutions: folds, windows, averages; and one replicated frame."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from causalvae_kernels import causal_conv3d, downsample_conv, explain, upsample_conv
from causalvae_kernels.core.triton_runtime import interpreting, why_no_triton
from causalvae_kernels.ops.causal_conv3d.backends.triton import call as triton_call
from causalvae_kernels.ops.causal_conv3d.backends.triton.folds import ALL, NONE, PAIRS, Fold, single_frame
from causalvae_kernels.ops.causal_conv3d.backends.triton.tiles import Tile, choose
from causalvae_kernels.ops.causal_conv3d.spec import ConvArgs
from causalvae_kernels.ops.downsample_conv import reference as downsample_reference
from causalvae_kernels.ops.downsample_conv import spec as downsample_spec
from causalvae_kernels.ops.upsample_conv import spec
from causalvae_kernels.parity import compare, compare_conv, compare_downsample, compare_upsample
from causalvae_kernels.workloads import (
    ConvCase,
    DownsampleCase,
    UpsampleCase,
    make_conv_call,
    make_downsample_call,
    make_upsample_call,
    with_layout,
)
from tests.support.cancelling import CANCELLING, cancelling_call
from tests.support.windows import windows_for

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")
needs_triton = pytest.mark.skipif(why_no_triton(DEVICE) is not None, reason=str(why_no_triton(DEVICE)))

BOTH, TIME, SPACE = (2, 2, 2), (2, 1, 1), (1, 2, 2)
LAST = "channels_last_3d"
LATER, EDGE = {"first_chunk": False}, {"spatial_mode": "replicate"}
HALVES = (torch.bfloat16, torch.float16)

UPSAMPLE = (
    UpsampleCase("space", (1, 8, 2, 4, 5), 8, layout=LAST),
    UpsampleCase("space, edges, rgb", (1, 3, 1, 5, 4), 5, options=EDGE),
    UpsampleCase("space, batch, one row", (2, 8, 1, 1, 4), 8, layout=LAST, bias=False),
    UpsampleCase("space, one pixel, edges", (1, 8, 1, 1, 1), 8, options=EDGE),
    UpsampleCase("space, several tiles", (1, 24, 1, 9, 17), 72, layout=LAST),
    UpsampleCase("space, three frames", (1, 8, 2, 3, 4), 8, 3, layout=LAST),
    UpsampleCase("space, three frames, zeros", (1, 8, 2, 3, 4), 8, 3, options={"temporal_mode": "zeros"}),
    UpsampleCase("space, three frames, state", (1, 8, 1, 3, 4), 8, 3, layout="sliced", state=True),
    UpsampleCase("space, three taps of one frame", (1, 8, 1, 3, 4), 8, 3, layout=LAST),
    UpsampleCase("frames repeated, first single", (1, 8, 2, 3, 4), 8, 1, BOTH, LAST),
    UpsampleCase("time and space", (1, 8, 2, 3, 4), 8, 3, BOTH, LAST, options=EDGE),
    UpsampleCase("time and space, pairs", (1, 8, 1, 3, 4), 9, 3, BOTH, options=LATER),
    UpsampleCase("time and space, state, batch", (2, 8, 1, 3, 2), 8, 3, BOTH, LAST, True, options=LATER),
    UpsampleCase("time and space, one frame", (1, 8, 1, 3, 4), 8, 3, BOTH, LAST, options=EDGE),
    UpsampleCase("time, first single", (1, 8, 2, 4, 3), 8, 3, TIME, LAST),
    UpsampleCase("time, state", (1, 8, 2, 3, 4), 9, 3, TIME, "permuted", True, options=LATER),
    UpsampleCase("time, frame by frame", (1, 8, 2, 3, 4), 8, 1, TIME, LAST),
)
DOWNSAMPLE = (
    DownsampleCase("plain", (1, 8, 2, 6, 5), 8, layout=LAST),
    DownsampleCase("smallest frames, rgb", (2, 3, 1, 2, 2), 4),
    DownsampleCase("pairs", (1, 8, 4, 5, 4), 9, True),
    DownsampleCase("pairs and a first frame", (2, 16, 3, 5, 4), 8, True, LAST),
    DownsampleCase("one frame of none to average", (1, 8, 1, 3, 4), 8, True, bias=False),
)


def on_device(call):
    return {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in call.items()}


@needs_triton
@pytest.mark.parametrize("case", UPSAMPLE, ids=lambda c: c.name)
def test_upsampling_against_the_oracle(case, seed):
    """All in one of three dtypes; the first ones in each."""
    for kind in (torch.float32, *HALVES) if case in UPSAMPLE[:2] else (torch.bfloat16,):
        comparison = compare_upsample(on_device(make_upsample_call(case, kind, seed)), "triton")
        assert comparison.passed, comparison


@needs_triton
@pytest.mark.parametrize("case", UPSAMPLE[-8:-3], ids=lambda c: c.name)
def test_upsampling_in_float32(case, seed):
    comparison = compare_upsample(on_device(make_upsample_call(case, torch.float32, seed)), "triton")
    assert comparison.passed, comparison


@needs_triton
@pytest.mark.parametrize("case", DOWNSAMPLE, ids=lambda c: c.name)
def test_downsampling_against_the_oracle(case, dtype, seed):
    comparison = compare_downsample(on_device(make_downsample_call(case, dtype, seed)), "triton")
    assert comparison.passed, comparison


@needs_triton
@pytest.mark.parametrize("case", UPSAMPLE[:1] + UPSAMPLE[9:11] + UPSAMPLE[-3:-2], ids=lambda c: c.name)
def test_upsampling_into_a_window(case, seed):
    """What the call that allocates gives, perhaps by another tile; nothing around it is touched."""
    _check_windows(upsample_conv, on_device(make_upsample_call(case, torch.bfloat16, seed)))


@needs_triton
@pytest.mark.parametrize("case", DOWNSAMPLE[:4], ids=lambda c: c.name)
def test_downsampling_into_a_window(case, seed):
    _check_windows(downsample_conv, on_device(make_downsample_call(case, torch.float32, seed)))


def _check_windows(op, call):
    expected = op(**call, backend="triton")
    for out, untouched in windows_for(expected):
        assert op(**call, out=out, backend="triton") is out
        torch.testing.assert_close(getattr(out, "body", out), expected, rtol=2**-7, atol=2**-7)
        assert untouched()


@needs_triton
def test_averages_do_not_overflow():
    x = torch.full((1, 1, 2, 2, 2), 60000.0, dtype=torch.float16, device=DEVICE)
    weight = torch.zeros(1, 1, 1, 3, 3, dtype=torch.float16, device=DEVICE)
    weight[..., 0, 0] = 0.5
    assert downsample_conv(x, weight, compress_time=True, backend="triton").item() == 30000.0


@needs_triton
@pytest.mark.parametrize("layout", ["contiguous", LAST, "sliced", "permuted"])
def test_averages_have_the_bits_of_the_reference(layout, dtype, seed):
    from causalvae_kernels.ops.downsample_conv.backends.triton import average

    generator = torch.Generator().manual_seed(seed)
    x = with_layout(torch.randn(2, 16, 4, 3, 5, generator=generator).to(DEVICE, dtype), layout)
    out = torch.empty(2, 16, 2, 3, 5, dtype=dtype, device=DEVICE)
    average.launch(out, x[:, :, 0::2], x[:, :, 1::2]).run()
    assert torch.equal(out, downsample_reference.averaged(x))


@needs_triton
@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize(("kind", "scale"), [*zip(CANCELLING, spec.SCALES, strict=True)], ids=str)
def test_folds_keep_their_digits_where_sums_cancel(kind, scale, half, seed):
    call = on_device(cancelling_call(kind, scale, half, seed))
    got, reference = (upsample_conv(**call, backend=b) for b in ("triton", "reference"))
    doubled = call | {name: call[name].double() for name in ("x", "weight")}
    comparison = compare(got, reference, upsample_conv(**doubled, backend="reference"))
    assert comparison.passed, comparison


# ---------------------------------------------------------------- one replicated frame

ONE = ConvCase("one frame", (1, 16, 1, 5, 6), 8, layout=LAST)
ONE_FRAME = (
    ONE,
    replace(
        ONE, name="contiguous, batch, residual", shape=(2, 3, 1, 4, 3), layout="contiguous", residual=True
    ),
    replace(ONE, name="edges, dilation", options={"spatial_mode": "replicate", "dilation": (2, 2, 1)}),
    replace(ONE, name="stride", options={"stride": (2, 2, 2)}),
    replace(ONE, name="two taps, nothing saved", kernel_size=(2, 1, 3)),
    replace(ONE, name="five taps", kernel_size=(5, 1, 1)),
)


@needs_triton
@pytest.mark.parametrize("case", ONE_FRAME, ids=lambda c: c.name)
def test_one_frame_against_the_oracle(case, dtype, seed):
    comparison = compare_conv(on_device(make_conv_call(case, dtype, seed)), "triton")
    assert comparison.passed, comparison


@needs_triton
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_one_frame_keeps_its_digits_where_taps_cancel(half, seed):
    call = cancelling_call(CANCELLING[0], BOTH, half, seed)
    x, weight = call["x"][:, :, :1].to(DEVICE), call["weight"].to(DEVICE)
    options = {"spatial_mode": "replicate"}
    got, reference = (causal_conv3d(x, weight, **options, backend=b) for b in ("triton", "reference"))
    oracle = causal_conv3d(x.double(), weight.double(), **options, backend="reference")
    assert compare(got, reference, oracle).passed


# ---------------------------------------------------------------- what is launched


def multiplications(launches):
    """Multiply-adds of the direct kernel's launches, tiles beyond the frames not counted."""
    found = 0
    for launch in launches:
        a = launch.arguments
        if "TAPS" in a and "frames" in a:
            pixels = a["x_ptr"].shape[0] * a["frames"] * a["out_height"] * a["out_width"]
            found += pixels * a["out_channels"] * a["channels"] * a["TAPS"]
    return found


# Taps of three in time and space, or in space, that are launched in float32, and in 16 bits with low parts.
TAPS = {
    "space": (1, SPACE, 4, 7),
    "space, three frames": (3, SPACE, 12, 21),
    "time and space": (3, BOTH, 8, 15),
    "time": (3, TIME, 18, 27),
    "frames repeated": (1, BOTH, 4, 7),
    "nothing but copies": (1, TIME, 9, 9),
}


@pytest.mark.parametrize(("kernel_frames", "scale", "taps", "split"), TAPS.values(), ids=TAPS)
def test_the_multiplications_are_those_of_the_floor_and_the_low_parts(kernel_frames, scale, taps, split):
    from causalvae_kernels.ops.upsample_conv.backends.triton import run
    from causalvae_kernels.ops.upsample_conv.backends.triton.plan import plan_upsample

    assert math.prod(spec.folded_kernel((kernel_frames, 3, 3), scale)) == taps
    for kind, wanted in ((torch.float32, taps), (torch.bfloat16, split), (torch.float16, split)):
        x = torch.empty(2, 8, 3, 4, 5, dtype=kind, device="meta")
        weight = x.new_empty(16, 8, kernel_frames, 3, 3)
        args = spec.UpsampleArgs(x, weight, None, None, scale, True, "replicate", "zeros")
        found = plan_upsample(x.new_empty(args.out_shape), args)
        launched = multiplications(run.launches(found, args, 90))
        assert 2 * launched * taps == spec.flops(x.shape, weight.shape, scale) * wanted


@pytest.mark.parametrize("compress_time", [False, True])
def test_downsampling_multiplies_what_the_floor_says(compress_time):
    from causalvae_kernels.ops.downsample_conv.backends.triton import run

    x = torch.empty(2, 8, 5, 6, 7, dtype=torch.bfloat16, device="meta")
    weight = x.new_empty(16, 8, 1, 3, 3)
    args = downsample_spec.DownsampleArgs(x, weight, None, compress_time)
    launched = multiplications(run.launches(x.new_empty(args.out_shape), args, 90))
    assert 2 * launched == downsample_spec.flops(x.shape, weight.shape, compress_time)


@pytest.mark.parametrize(
    ("kind", "kernel", "taps"),
    [
        (torch.bfloat16, (3, 3, 3), 18),
        (torch.float16, (5, 1, 1), 2),
        (torch.bfloat16, (2, 3, 3), 18),
        (torch.float32, (2, 3, 3), 9),
        (torch.float32, (3, 3, 3), 9),
    ],
    ids=str,
)
def test_taps_of_one_frame(kind, kernel, taps):
    """With two taps the parts of the sum are as many: nothing is folded."""
    from causalvae_kernels.ops.causal_conv3d.backends.triton import run

    x = torch.empty(1, 8, 1, 6, 7, dtype=kind, device="meta")
    weight, ones = x.new_empty(16, 8, *kernel), (1, 1, 1)
    args = ConvArgs(x, weight, None, None, None, ones, ones, "replicate", "zeros")
    call = triton_call.make_call(args, x.new_empty(args.out_shape))
    launches = run.launches(call, choose(call, 90))
    assert launches[-1].arguments["TAPS"] == taps
    assert len(launches) == (1 if (single_frame(kernel, kind)) is None else 2)


@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("time", [NONE, PAIRS, ALL])
def test_the_taps_of_a_fold(time, space):
    """Each pixel of the window once, and sums of taps once more in two parts."""
    fold = Fold((3, 3, 3), time, space, True)
    whole = Fold((3, 3, 3), time, space, False)
    assert whole.taps == math.prod(fold.window)
    rows = 2 if space else 3
    single = {NONE: 3, PAIRS: 1, ALL: 0}[time] * (1 if space else rows * rows)  # taps that are no sum
    assert fold.taps == 2 * whole.taps - single
    # All frames of a window but the last have equally many taps: the kernel divides by that number.
    assert len(set(fold.taps_of_frames[:-1])) <= 1 and fold.taps_of_frames[-1] <= fold.taps_of_frames[0]


@needs_triton
def test_a_given_tile_is_taken(seed):
    from causalvae_kernels.ops.upsample_conv.backends import triton

    call = on_device(make_upsample_call(UPSAMPLE[0], torch.bfloat16, seed))
    args = spec.UpsampleArgs(call["x"], call["weight"], call["bias"], None, SPACE, True, "replicate", "zeros")
    expected = upsample_conv(**call, backend="triton")
    got = torch.empty_like(expected)
    triton.convolve(got, args, Tile(64, 32, 16, 4, 2))
    assert torch.allclose(got, expected, rtol=2**-7, atol=2**-7)


def test_auto_does_not_take_what_was_not_measured():
    x, weight = torch.zeros(1, 8, 2, 4, 4), torch.zeros(8, 8, 1, 3, 3)
    for op in ("upsample_conv", "downsample_conv"):
        assert explain(op, x.bfloat16(), weight.bfloat16()).chosen not in ("triton", "cuda")
        sentence = dict(explain(op, x.double(), weight.double(), backend="triton").rows)["triton"]
        assert "knows float32, bfloat16 and float16, not torch.float64" in sentence
