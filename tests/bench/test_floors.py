"""Floors: operations and bytes as a profile of the real decoders counts them, and the time they take."""

import pytest

from causalvae_kernels.bench.floors import GPUS, Gpu, conv_floor, pad_floor
from causalvae_kernels.workloads import FULL_SIZE

# Of a profile of diffusers' decoders on meta tensors, bfloat16: calls, TFLOP and GB of all of them.
PROFILE = {
    "256x256-8x240x360": (40, 97.845, 31.99),  # CogVideoX
    "128x128-8x480x720": (35, 85.614, 55.77),
    "256x128-8x480x720": (5, 24.461, 12.40),
    "512x512-2x60x90": (60, 9.173, 2.84),
    "128x3-8x480x720": (5, 0.287, 4.51),
    "384x384-1x60x104": (210, 10.434, 5.86),  # Wan 2.1
    "1024x1024-2x88x160": (120, 191.341, 28.05),  # Wan 2.2
}


@pytest.mark.parametrize("name", PROFILE)
def test_operations_are_those_of_the_profile(name):
    calls, tflop, _ = PROFILE[name]
    assert calls * conv_floor(FULL_SIZE[name], GPUS["h200"]).flops == pytest.approx(tflop * 1e12, rel=2e-3)


@pytest.mark.parametrize("name", PROFILE)
def test_bytes_are_those_of_the_profile(name):
    """Wan pads its frames before the convolution: the border of a pixel is in the profile's bytes."""
    calls, _, gigabytes = PROFILE[name]
    border = 0.06 if name in ("384x384-1x60x104", "1024x1024-2x88x160") else 2e-3
    moved = calls * conv_floor(FULL_SIZE[name], GPUS["h200"]).bytes
    assert (1 - border) * gigabytes * 1e9 <= moved <= 1.002 * gigabytes * 1e9


def test_the_larger_time_is_the_floor():
    gpu = Gpu("a made-up one", tflops=1.0, gbps=1.0)
    floor = conv_floor(FULL_SIZE["128x128-8x480x720"], gpu)
    assert floor.flops_ms == pytest.approx(floor.flops / 1e9) and floor.bytes_ms == pytest.approx(
        floor.bytes / 1e6
    )
    assert (floor.ms, floor.limit) == (floor.flops_ms, "operations")
    point = conv_floor(FULL_SIZE["16x128-8x480x720-1x1x1"], Gpu("slow memory", 1000.0, 1.0))
    assert (point.ms, point.limit) == (point.bytes_ms, "bytes")


def test_padding_in_place_moves_the_border_only():
    workload = FULL_SIZE["160x160-4x352x640"]
    in_place, copied = (pad_floor(workload, GPUS["h200"], in_place=flag) for flag in (True, False))
    assert in_place.bytes * 3 == copied.bytes  # two frames of six
    assert copied.flops == 0 and copied.limit == "bytes"
