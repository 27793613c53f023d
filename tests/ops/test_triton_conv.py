"""The kernels of the backend `triton`: every tile, Winograd's form over time, and its guard."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from causalvae_kernels import BackendUnavailable, causal_conv3d, causal_conv3d_, explain
from causalvae_kernels.core.triton_runtime import interpreting, why_no_triton
from causalvae_kernels.ops.causal_conv3d import triton_call
from causalvae_kernels.ops.causal_conv3d.spec import error_factor
from causalvae_kernels.ops.causal_conv3d.triton_tiles import (
    Plan,
    Tile,
    capability_of,
    choose,
    configurations,
    why_no_winograd,
    winograd_tile,
)
from causalvae_kernels.parity import Comparison, compare
from causalvae_kernels.workloads import ConvCase, make_conv_call

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")
needs_triton = pytest.mark.skipif(why_no_triton(DEVICE) is not None, reason=str(why_no_triton(DEVICE)))

HALVES = (torch.bfloat16, torch.float16)
LAST = "channels_last_3d"
# One tile in all: what is tested here is where the kernels read and write.
SMALL = Tile(128, 64, 16, 4, 2, group=2)

WINOGRAD_CASES = (
    ConvCase("two frames", (1, 16, 2, 6, 7), 16, layout=LAST),
    ConvCase("odd, residual", (1, 16, 3, 5, 7), 8, layout=LAST, residual=True),
    ConvCase("state, residual, batch", (2, 8, 4, 5, 6), 16, layout=LAST, state=True, residual=True),
    ConvCase("state, odd", (1, 8, 3, 6, 5), 16, layout=LAST, state=True, bias=False),
    ConvCase("zeros", (1, 16, 2, 6, 6), 8, layout=LAST, options={"temporal_mode": "zeros"}),
    ConvCase("zeros, odd", (2, 8, 5, 4, 5), 8, layout=LAST, options={"temporal_mode": "zeros"}),
    ConvCase("valid in time", (1, 8, 6, 5, 5), 8, layout=LAST, options={"temporal_mode": "valid"}),
    ConvCase("valid in space", (1, 8, 2, 6, 7), 8, layout=LAST, options={"spatial_mode": "valid"}),
    ConvCase("replicate in space", (1, 8, 3, 5, 6), 8, layout=LAST, options={"spatial_mode": "replicate"}),
    ConvCase("reflect in space", (1, 8, 2, 5, 6), 8, layout=LAST, options={"spatial_mode": "reflect"}),
    ConvCase("time only", (1, 8, 4, 5, 6), 8, (3, 1, 1), layout=LAST),
    ConvCase("wide kernel", (1, 8, 2, 4, 9), 8, (3, 1, 5), layout=LAST),
    ConvCase("several tiles of each kind", (1, 40, 2, 11, 13), 72, (3, 1, 3), layout=LAST),
)


def arguments(call: dict[str, Any]) -> tuple[Any, ...]:
    """Return the operator's arguments, the tensors on the device."""
    triple = {n: (v,) * 3 if isinstance(v := call.get(n, 1), int) else v for n in ("stride", "dilation")}
    tensors = (call.get(n) for n in ("x", "weight", "bias", "initial_state", "residual"))
    return (
        *(None if t is None else t.to(DEVICE) for t in tensors),
        triple["stride"],
        triple["dilation"],
        call.get("temporal_mode", "replicate"),
        call.get("spatial_mode", "zeros"),
    )


def compute(call: dict[str, Any], plan: Plan) -> tuple[Tensor, bool | None]:
    """Return what a plan computes, and whether its guard raised the flag (None: it has no guard)."""
    from causalvae_kernels.ops.causal_conv3d.triton_run import launches

    prepared = triton_call.make_call(*arguments(call))
    prepared.out.fill_(float("nan"))
    flag = None
    for launch in launches(prepared, plan):
        launch.run()
        if plan.winograd is not None and launch.arguments.get("flag_ptr") is not None:
            flag = bool(launch.arguments["flag_ptr"].item())
    return prepared.out.cpu(), flag


def judge(call: dict[str, Any], got: Tensor) -> Comparison:
    """Apply the tolerance rule."""
    doubled = {k: v.double() if isinstance(v, Tensor) else v for k, v in call.items()}
    reference, oracle = (causal_conv3d(**c, backend="reference") for c in (call, doubled))
    return compare(got, reference, oracle, *error_factor(reference.dtype))


def error(got: Tensor, call: dict[str, Any]) -> float:
    """Return the norm-wise relative error against the oracle."""
    doubled = {k: v.double() if isinstance(v, Tensor) else v for k, v in call.items()}
    oracle = causal_conv3d(**doubled, backend="reference")
    return ((got.double() - oracle).norm() / oracle.norm()).item()


def small_winograd() -> Plan:
    return Plan(SMALL, replace(winograd_tile(capability_of(DEVICE)), block_k=16))


@needs_triton
@pytest.mark.parametrize("case", WINOGRAD_CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("low", HALVES, ids=str)
def test_winograd_against_the_oracle(case, low, seed):
    call = make_conv_call(case, low, seed)
    got, flag = compute(call, small_winograd())
    assert flag is False
    comparison = judge(call, got)
    assert comparison.passed, comparison


@needs_triton
def test_winograd_loses_no_digits(seed):
    """What the fp16 transforms cost beside the rounding of the output; the rule allows a whole ulp more.

    Of float16 inputs every difference is rounded, and so are G1 and G2: with the variances of the four
    products, 2 + 1.5 + 1.5 of the 3 of an output, and two roundings each, that is sqrt(1 + 10 / 3) = 2.1.
    """
    case = ConvCase("digits", (1, 64, 4, 8, 8), 64, (3, 1, 3), layout=LAST, bias=False)
    for low, factor in ((torch.bfloat16, 1.05), (torch.float16, 2.3)):
        call = make_conv_call(case, low, seed)
        results = [compute(call, plan)[0] for plan in (Plan(SMALL), small_winograd())]
        assert not torch.equal(*results)  # two algorithms, not one of them twice
        direct, winograd = (error(r, call) for r in results)
        assert winograd <= factor * direct, (low, winograd, direct)


GUARDED = ConvCase("guard", (1, 16, 3, 5, 6), 16, layout=LAST, residual=True)


def times(name: str, factor: float) -> Any:
    return lambda call: call | {name: call[name] * factor}


def spiked(name: str, value: float) -> Any:
    """Put one value into the middle of a tensor."""

    def change(call: dict[str, Any]) -> dict[str, Any]:
        tensor = call[name].clone()
        tensor[tuple(n // 2 for n in tensor.shape)] = value
        return call | {name: tensor}

    return change


BEYOND = {
    "a sum of two frames": lambda call: call | {"x": torch.full_like(call["x"], 4e4)},
    "one large value": spiked("x", 1e30),
    "an infinity": spiked("x", float("inf")),
    "a NaN": spiked("x", float("nan")),
    "steps of float16 too coarse": times("x", 1e-6),
    "below float16": times("x", 1e-20),
    "nothing but zeros": times("x", 0.0),
    "weights whose squares vanish": times("weight", 1e-25),
    "an infinite weight": spiked("weight", float("inf")),
}


@needs_triton
@pytest.mark.parametrize("change", BEYOND.values(), ids=BEYOND)
def test_the_guard_gives_the_direct_result(change, seed):
    call = change(make_conv_call(GUARDED, torch.bfloat16, seed))
    got, flag = compute(call, small_winograd())
    direct, _ = compute(call, Plan(SMALL))
    assert flag is True
    assert torch.equal(got.nan_to_num(7.0, 8.0, 9.0), direct.nan_to_num(7.0, 8.0, 9.0))


WITHIN = {
    "large": times("x", 4096.0),
    "small": times("x", 2.0**-9),
    "large weights": times("weight", 1e15),
    "small weights": times("weight", 1e-15),
    "weights of the last frame only": lambda call: (
        call | {"weight": call["weight"] * torch.tensor([0, 0, 1]).view(3, 1, 1).bfloat16()}
    ),
    "one output channel much smaller": lambda call: (
        call | {"weight": call["weight"] * torch.logspace(0, -9, 16).view(16, 1, 1, 1, 1).bfloat16()}
    ),
}


@needs_triton
@pytest.mark.parametrize("change", WITHIN.values(), ids=WITHIN)
def test_the_guard_leaves_alone_what_float16_holds(change, seed):
    case = replace(GUARDED, bias=False, residual=False)
    call = change(make_conv_call(case, torch.bfloat16, seed))
    got, flag = compute(call, small_winograd())
    direct, _ = compute(call, Plan(SMALL))
    assert flag is False
    for n in range(16):  # every output channel by itself: weights are scaled one by one
        one = call | {"weight": call["weight"][n : n + 1]}
        assert error(got[:, n : n + 1], one) <= 1.3 * error(direct[:, n : n + 1], one), n


@needs_triton
@pytest.mark.parametrize("exponent", [-20, -17, -14, -11, 8, 12, 15])
def test_at_every_scale_the_result_is_as_good_as_the_direct_one(exponent, seed):
    """Around the sizes where float16's smallest step, or its largest number, begins to matter."""
    case = ConvCase("scale", (1, 16, 2, 8, 8), 16, (3, 1, 3), layout=LAST, bias=False)
    call = times("x", 2.0**exponent)(make_conv_call(case, torch.bfloat16, seed))
    results = [compute(call, plan)[0] for plan in (Plan(SMALL), small_winograd())]
    direct, winograd = (error(r, call) for r in results)
    assert winograd <= 1.2 * direct, (winograd, direct)


TILE_CASES = (
    ConvCase("wide", (1, 64, 2, 9, 17), 264, (1, 1, 3), layout=LAST, residual=True),
    ConvCase("deep", (1, 136, 2, 9, 17), 72, (2, 1, 1), layout=LAST, state=True),
    ConvCase("shallow", (1, 8, 2, 9, 17), 40, (1, 3, 1), layout=LAST),
    ConvCase("three channels out", (1, 64, 2, 9, 17), 3, (1, 1, 3), layout=LAST, residual=True),
)


@needs_triton
@pytest.mark.parametrize("case", TILE_CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("number", range(max(len(configurations(c, torch.bfloat16)) for c in (80, 90, 120))))
def test_every_tile(case, number, seed):
    tiles = configurations(capability_of(DEVICE), torch.bfloat16)
    call = make_conv_call(case, torch.bfloat16, seed)
    comparison = judge(call, compute(call, Plan(tiles[number % len(tiles)]))[0])
    assert comparison.passed, comparison


@needs_triton
@pytest.mark.skipif(capability_of(DEVICE) < 90, reason="the GPU has no tensor descriptors")
def test_descriptor_loads_the_same_weights(seed):
    call = make_conv_call(TILE_CASES[0], torch.bfloat16, seed)
    tile = Tile(128, 64, 32, 4, 2)
    plain, described = (compute(call, Plan(replace(tile, descriptor=d)))[0] for d in (False, True))
    assert torch.equal(plain, described)


@needs_triton
def test_offsets_of_64_bits(seed, monkeypatch):
    for case in (TILE_CASES[1], replace(TILE_CASES[1], layout="sliced")):
        call = make_conv_call(case, torch.float32, seed)
        expected, _ = compute(call, Plan(SMALL))
        monkeypatch.setattr(triton_call, "_extent", lambda x: 2**31)
        got, _ = compute(call, Plan(SMALL))
        monkeypatch.undo()
        assert torch.equal(got, expected)
    call = make_conv_call(WINOGRAD_CASES[1], torch.bfloat16, seed)
    expected, _ = compute(call, small_winograd())
    monkeypatch.setattr(triton_call, "_extent", lambda x: 2**31)
    assert torch.equal(compute(call, small_winograd())[0], expected)


def test_which_offsets_need_64_bits():
    small, large = (torch.empty(1, 8, 2, h, 2**14, device="meta") for h in (2**13, 2**14 + 1))
    last = {"memory_format": torch.channels_last_3d}
    for x, wide in ((small, False), (large, True), (small.to(**last), False), (large.to(**last), True)):
        call = triton_call.make_call(
            x, x.new_empty(8, 8, 1, 1, 1), None, None, None, (1, 1, 1), (1, 1, 1), "zeros", "zeros"
        )
        assert triton_call.shared_arguments(call)["WIDE"] is wide


def meta_call(
    shape: tuple[int, ...] = (1, 16, 4, 8, 8),
    out_channels: int = 16,
    kernel: tuple[int, int, int] = (3, 3, 3),
    dtype: torch.dtype = torch.bfloat16,
    stride: tuple[int, int, int] = (1, 1, 1),
    dilation: tuple[int, int, int] = (1, 1, 1),
    past: Tensor | None = None,
    layout: torch.memory_format = torch.channels_last_3d,
) -> triton_call.Call:
    x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
    weight = x.new_empty(out_channels, shape[1], *kernel)
    return triton_call.make_call(x, weight, None, past, None, stride, dilation, "replicate", "zeros")


def meta_past(width: int) -> Tensor:
    """Return two frames of 8x8 pixels, channels last, cut out of wider ones."""
    return torch.empty(1, 2, 8, width, 16, dtype=torch.bfloat16, device="meta")[:, :, :, :8].permute(
        0, 4, 1, 2, 3
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"past": meta_past(8)}, None),
        ({"past": meta_past(9)}, "other strides"),
        ({"dtype": torch.float32}, "the dtype is torch.float32"),
        ({"kernel": (2, 3, 3)}, r"kernel \(2, 3, 3\)"),
        ({"stride": (2, 1, 1)}, r"stride \(2, 1, 1\)"),
        ({"dilation": (1, 2, 1)}, r"dilation \(1, 2, 1\)"),
        ({"shape": (1, 12, 4, 8, 8)}, "multiples of 8 channels"),
        ({"out_channels": 3}, "multiples of 8 channels"),
        ({"layout": torch.contiguous_format}, "not channels last"),
        ({"shape": (1, 16, 1, 8, 8)}, "one output frame"),
    ],
)
def test_winograd_says_why_not(change, words):
    call, tuned = meta_call(**change), winograd_tile(90)
    objection = why_no_winograd(call)
    assert choose(call, 90).winograd is None  # not by itself: nothing was measured
    if words is None:
        assert objection is None and choose(call, 90, tuned).winograd == tuned
    else:
        assert re.search(words, objection), objection
        assert choose(call, 90, tuned) == choose(call, 90)


def test_a_tuned_tile_is_taken():
    assert choose(meta_call(), 80, SMALL) == Plan(SMALL)


@pytest.mark.parametrize("capability", [80, 86, 87, 89, 90, 100, 103, 120, 121])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_every_choice_is_a_configuration(capability, dtype):
    """Nothing but what is compiled ahead of time may be chosen, and all of it is."""
    channels = (3, 8, 16, 48, 96, 128, 160, 192, 256, 320, 384, 512, 640)
    formats = (torch.channels_last_3d, torch.contiguous_format)
    chosen = {
        choose(meta_call((1, cin, t, h, h), cout, dtype=dtype, layout=layout), capability).direct
        for cin in channels
        for cout in channels
        for t, h in ((1, 4), (2, 30), (8, 120))
        for layout in formats
    }
    assert chosen == set(configurations(capability, dtype))


def test_wide_tiles_are_for_much_work():
    """At 512 output channels, the tile with the most FLOPs per byte, unless it leaves a GPU without work."""
    much, little = ((1, 512, t, h, h) for t, h in ((8, 64), (1, 16)))
    assert choose(meta_call(much, 512), 90).direct.block_n == 256
    assert choose(meta_call(little, 512), 90).direct.block_n == 64
    assert choose(meta_call(much, 3), 90).direct.block_n == 16


def test_why_not():
    x, weight = torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(BackendUnavailable, match="'triton' cannot run this call: .* not torch.float64"):
        causal_conv3d(x.double(), weight.double(), backend="triton")
    with pytest.raises(BackendUnavailable, match="'exact' asks for the bits"):
        causal_conv3d(x, weight, backend="triton", precision="exact")
    wide = x.expand(1, 1, 1, 2**16, 2**15)
    with pytest.raises(BackendUnavailable, match="2147483648 pixels, the kernel counts up to"):
        causal_conv3d(wide, weight, backend="triton")
    if not interpreting():
        with pytest.raises(
            BackendUnavailable, match="the tensor is on cpu, the kernel runs on an NVIDIA GPU"
        ):
            causal_conv3d(x, weight, backend="triton")
    assert explain("causal_conv3d", x, weight).chosen != "triton"  # nothing was measured


@needs_triton
@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format], ids=str)
def test_into_memory_that_is_there(layout, shift, seed):
    """The bits of the call that allocates, in the layout and at the address that are asked for."""
    case = ConvCase("into", (1, 16, 3, 5, 6), 16, layout=LAST, state=True, residual=True)
    call = {
        k: v.to(DEVICE) if isinstance(v, Tensor) else v
        for k, v in make_conv_call(case, torch.bfloat16, seed).items()
    }
    expected = causal_conv3d(**call, backend="triton")
    memory = torch.full((shift + expected.numel() + 1,), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    strides = torch.empty(expected.shape, device="meta").contiguous(memory_format=layout).stride()
    out = memory.as_strided(expected.shape, strides, shift)
    assert causal_conv3d_(out, **call, backend="triton") is None
    assert torch.equal(out, expected)
    assert memory.isnan().sum() == shift + 1


@needs_triton
@pytest.mark.parametrize("channels", [16, 13])
@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format], ids=str)
def test_into_a_window(layout, channels, seed):
    """A halo, a frame in front, every second column, a batch: what is around the window stays as it is."""
    case = ConvCase("window", (2, 16, 2, 5, 6), channels, (1, 3, 3), layout=LAST, residual=True)
    call = make_conv_call(case, torch.bfloat16, seed)
    call = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in call.items()}
    expected = causal_conv3d(**call, backend="triton")
    storage = torch.full((2, channels, 3, 7, 14), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    storage = storage.contiguous(memory_format=layout)
    for out in (storage[:, :, 1:, 1:-1, 1:7], storage[:, :, 1:, 1:6, 1:13:2], storage[:, :, ::2, 2:, 8:]):
        storage.fill_(float("nan"))
        causal_conv3d_(out, **call, backend="triton")
        assert torch.equal(out, expected)
        assert storage.isnan().sum() == storage.numel() - out.numel()
    turned = torch.empty(2, channels, 2, 6, 5, dtype=torch.bfloat16, device=DEVICE).transpose(3, 4)
    causal_conv3d_(turned, **call, backend="triton")
    assert torch.equal(turned, expected)


@needs_triton
def test_weights_in_place_if_channels_last():
    weight = torch.randn(8, 16, 3, 3, 3)
    last = weight.contiguous(memory_format=torch.channels_last_3d)
    assert triton_call.packed(last).data_ptr() == last.data_ptr()
    assert torch.equal(triton_call.packed(weight), triton_call.packed(last))
    shifted = torch.empty(weight.numel() + 1)[1:].view(8, 3, 3, 3, 16).copy_(triton_call.packed(weight))
    again = triton_call.packed(shifted.permute(0, 4, 1, 2, 3))
    assert again.data_ptr() % 16 == 0 and torch.equal(again, shifted)
