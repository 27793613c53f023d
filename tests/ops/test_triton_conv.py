"""The kernels of the backend `triton`: every tile, and what a call chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from causalvae_kernels import BackendUnavailable, causal_conv3d, explain
from causalvae_kernels.core.gpu_arch import capability_of
from causalvae_kernels.core.triton_runtime import interpreting, why_no_triton
from causalvae_kernels.ops.causal_conv3d.backends.triton import call as triton_call
from causalvae_kernels.ops.causal_conv3d.backends.triton.tiles import Tile, choose, configurations
from causalvae_kernels.ops.causal_conv3d.spec import ConvArgs, error_factor
from causalvae_kernels.parity import Comparison, compare
from causalvae_kernels.workloads import ConvCase, make_conv_call

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not interpreting() else "cpu")
needs_triton = pytest.mark.skipif(why_no_triton(DEVICE) is not None, reason=str(why_no_triton(DEVICE)))

HALVES = (torch.bfloat16, torch.float16)
LAST = "channels_last_3d"
# One tile in all: what is tested here is where the kernels read and write.
SMALL = Tile(128, 64, 16, 4, 2, group=2)


def arguments(call: dict[str, Any]) -> ConvArgs:
    """Return the record of a call, the tensors on the device."""
    triple = {n: (v,) * 3 if isinstance(v := call.get(n, 1), int) else v for n in ("stride", "dilation")}
    tensors = (call.get(n) for n in ("x", "weight", "bias", "initial_state", "residual"))
    return ConvArgs(
        *(None if t is None else t.to(DEVICE) for t in tensors),
        triple["stride"],
        triple["dilation"],
        call.get("temporal_mode", "replicate"),
        call.get("spatial_mode", "zeros"),
    )


def compute(call: dict[str, Any], tile: Tile) -> Tensor:
    """Return what a tile computes."""
    from causalvae_kernels.ops.causal_conv3d.backends.triton.run import run

    prepared = triton_call.make_call(arguments(call))
    prepared.out.fill_(float("nan"))
    run(prepared, tile)
    return prepared.out.cpu()


def judge(call: dict[str, Any], got: Tensor) -> Comparison:
    """Apply the tolerance rule."""
    doubled = {k: v.double() if isinstance(v, Tensor) else v for k, v in call.items()}
    reference, oracle = (causal_conv3d(**c, backend="reference") for c in (call, doubled))
    return compare(got, reference, oracle, *error_factor(reference.dtype))


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
    comparison = judge(call, compute(call, tiles[number % len(tiles)]))
    assert comparison.passed, comparison


@needs_triton
@pytest.mark.skipif(capability_of(DEVICE) < 90, reason="the GPU has no tensor descriptors")
def test_descriptor_loads_the_same_weights(seed):
    call = make_conv_call(TILE_CASES[0], torch.bfloat16, seed)
    tile = Tile(128, 64, 32, 4, 2)
    plain, described = (compute(call, replace(tile, descriptor=d)) for d in (False, True))
    assert torch.equal(plain, described)


@needs_triton
def test_offsets_of_64_bits(seed, monkeypatch):
    for case in (TILE_CASES[1], replace(TILE_CASES[1], layout="sliced")):
        call = make_conv_call(case, torch.float32, seed)
        expected = compute(call, SMALL)
        monkeypatch.setattr(triton_call, "_extent", lambda x: 2**31)
        got = compute(call, SMALL)
        monkeypatch.undo()
        assert torch.equal(got, expected)


def test_which_offsets_need_64_bits():
    small, large = (torch.empty(1, 8, 2, h, 2**14, device="meta") for h in (2**13, 2**14 + 1))
    last = {"memory_format": torch.channels_last_3d}
    for x, wide in ((small, False), (large, True), (small.to(**last), False), (large.to(**last), True)):
        call = triton_call.make_call(ConvArgs(x, x.new_empty(8, 8, 1, 1, 1), temporal_mode="zeros"))
        assert triton_call.kernel_arguments(call)["WIDE"] is wide


def meta_call(
    shape: tuple[int, ...] = (1, 16, 4, 8, 8),
    out_channels: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    layout: torch.memory_format = torch.channels_last_3d,
) -> triton_call.Call:
    x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
    return triton_call.make_call(ConvArgs(x, x.new_empty(out_channels, shape[1], 3, 3, 3)))


def test_a_tuned_tile_is_taken():
    assert choose(meta_call(), 80, SMALL) == SMALL


@pytest.mark.parametrize("capability", [80, 86, 87, 89, 90, 100, 103, 120, 121])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_every_choice_is_a_configuration(capability, dtype):
    """Nothing but what is compiled ahead of time may be chosen, and all of it is."""
    channels = (3, 8, 16, 48, 96, 128, 160, 192, 256, 320, 384, 512, 640)
    formats = (torch.channels_last_3d, torch.contiguous_format)
    chosen = {
        choose(meta_call((1, cin, t, h, h), cout, dtype=dtype, layout=layout), capability)
        for cin in channels
        for cout in channels
        for t, h in ((1, 4), (2, 30), (8, 120))
        for layout in formats
    }
    assert chosen == set(configurations(capability, dtype))


def test_wide_tiles_are_for_much_work():
    """At 512 output channels, the tile with the most FLOPs per byte, unless it leaves a GPU without work."""
    much, little = ((1, 512, t, h, h) for t, h in ((8, 64), (1, 16)))
    assert choose(meta_call(much, 512), 90).block_n == 256
    assert choose(meta_call(little, 512), 90).block_n == 64
    assert choose(meta_call(much, 3), 90).block_n == 16


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
    assert causal_conv3d(**call, out=out, backend="triton") is out
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
        causal_conv3d(**call, out=out, backend="triton")
        assert torch.equal(out, expected)
        assert storage.isnan().sum() == storage.numel() - out.numel()
    turned = torch.empty(2, channels, 2, 6, 5, dtype=torch.bfloat16, device=DEVICE).transpose(3, 4)
    causal_conv3d(**call, out=turned, backend="triton")
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
