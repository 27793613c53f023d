"""The causal convolutions of real VAEs at sizes that a CPU can time, by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """One causal convolution.

    Attributes:
        name: "<in>x<out>-<T>x<H>x<W>", kernel ("-1x3x3") and stride ("-s1x2x2") added where they are not
            3x3x3 and 1.
        in_channels: Cin.
        out_channels: Cout.
        num_frames: T of the chunk, without padding.
        height: H in pixels.
        width: W in pixels.
        kernel_size: (kT, kH, kW).
        stride: (time, height, width).
    """

    name: str
    in_channels: int
    out_channels: int
    num_frames: int
    height: int
    width: int
    kernel_size: tuple[int, int, int] = (3, 3, 3)
    stride: tuple[int, int, int] = (1, 1, 1)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Return (B, C, T, H, W) of the input, B = 1."""
        return (1, self.in_channels, self.num_frames, self.height, self.width)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Return (Cout, Cin, kT, kH, kW)."""
        return (self.out_channels, self.in_channels, *self.kernel_size)


def _workload(
    in_channels: int,
    out_channels: int,
    frames: int,
    height: int,
    width: int,
    kernel_size: tuple[int, int, int] = (3, 3, 3),
    stride: tuple[int, int, int] = (1, 1, 1),
) -> Workload:
    name = f"{in_channels}x{out_channels}-{frames}x{height}x{width}"
    if kernel_size != (3, 3, 3):
        name += "-" + "x".join(map(str, kernel_size))
    if stride != (1, 1, 1):
        name += "-s" + "x".join(map(str, stride))
    return Workload(name, in_channels, out_channels, frames, height, width, kernel_size, stride)


_FRAME = (1, 3, 3)
_POINT = (1, 1, 1)

WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        _workload(128, 128, 9, 60, 90),
        _workload(256, 256, 9, 30, 45),
        _workload(512, 512, 5, 30, 45),
        _workload(128, 128, 9, 120, 180),
        _workload(256, 128, 9, 60, 90),
        _workload(96, 96, 4, 120, 208),
        _workload(192, 192, 4, 60, 104),
        _workload(384, 384, 2, 60, 104),
        _workload(3, 128, 9, 96, 144),
        _workload(128, 3, 9, 96, 144),
        _workload(256, 256, 8, 48, 72, _FRAME),
        _workload(512, 512, 3, 24, 36, _FRAME),
        _workload(128, 256, 9, 48, 72, _POINT),
    )
}

# What the speed of `causal_conv3d` is judged by: widths and sizes of CogVideoX and Wan.
GATED: tuple[str, ...] = (
    "128x128-9x60x90",
    "256x256-9x30x45",
    "512x512-5x30x45",
    "128x128-9x120x180",
    "256x128-9x60x90",
    "96x96-4x120x208",
    "192x192-4x60x104",
    "384x384-2x60x104",
)
