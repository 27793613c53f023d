"""The causal convolutions of real VAEs by name: at sizes that a CPU can time, and at full size."""

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


def _by_name(*workloads: Workload) -> dict[str, Workload]:
    return {workload.name: workload for workload in workloads}


WORKLOADS: dict[str, Workload] = _by_name(
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

# What a GPU is judged by: the convolutions in which a chunk of a whole decode spends its time.
FULL_SIZE: dict[str, Workload] = _by_name(
    # CogVideoX, 49 frames of 480x720
    _workload(128, 128, 8, 480, 720),
    _workload(256, 128, 8, 480, 720),
    _workload(256, 256, 8, 240, 360),
    _workload(256, 256, 4, 120, 180),
    _workload(512, 512, 2, 60, 90),
    _workload(256, 256, 8, 480, 720, _FRAME),
    _workload(16, 128, 8, 480, 720, _POINT),
    _workload(128, 3, 8, 480, 720),
    # Wan 2.1, 81 frames of 480x832
    _workload(96, 96, 4, 480, 832),
    _workload(192, 192, 4, 240, 416),
    _workload(384, 384, 2, 120, 208),
    _workload(384, 384, 1, 60, 104),
    # Wan 2.2, 704x1280
    _workload(160, 160, 4, 352, 640),
    _workload(320, 320, 4, 176, 320),
    _workload(640, 640, 2, 88, 160),
    _workload(256, 256, 4, 352, 640),
    _workload(512, 512, 4, 176, 320),
    _workload(1024, 1024, 2, 88, 160),
    # HunyuanVideo, a tile of 256x256
    _workload(128, 128, 17, 256, 256),
    _workload(256, 256, 17, 128, 128),
    _workload(512, 512, 9, 64, 64),
)
