"""The least time that an op can take on a GPU: its operations over the rate, its bytes over the bandwidth.

Nothing is measured here, so that it works where there is no GPU. No direct convolution runs below its floor;
one with fewer multiplications can.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.causal_conv3d import spec as conv_spec
from ..ops.causal_pad3d import spec as pad_spec
from ..workloads import Workload


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do at most, as measured on one.

    Attributes:
        name: Of the chip.
        tflops: Rate of a large bfloat16 or float16 matrix product of random numbers, 10^12 operations a
            second, a multiply-add counted as two.
        gbps: Rate of a large copy within its memory, 10^9 bytes a second, read and written both counted.
    """

    name: str
    tflops: float
    gbps: float


GPUS = {"h200": Gpu("H200", 790.0, 4300.0)}


@dataclass(frozen=True)
class Floor:
    """The least that a call does, and the least time that takes.

    Attributes:
        flops: Operations of the direct form.
        bytes: Every input read once, every output written once.
        flops_ms: Milliseconds for the operations at the full rate.
        bytes_ms: Milliseconds for the bytes at the full bandwidth.
    """

    flops: int
    bytes: int
    flops_ms: float
    bytes_ms: float

    @property
    def ms(self) -> float:
        """The larger of the two times."""
        return max(self.flops_ms, self.bytes_ms)

    @property
    def limit(self) -> str:
        """What takes that time: "operations" or "bytes"."""
        return "operations" if self.flops_ms >= self.bytes_ms else "bytes"


def conv_floor(workload: Workload, gpu: Gpu, itemsize: int = 2) -> Floor:
    """Return the floor of a convolution in the middle of a stream: it reads the frames before its own.

    Args:
        workload: The convolution.
        gpu: Where it runs.
        itemsize: Bytes per element: 2, the rate of `gpu` being that of half precision.
    """
    batch, channels, frames, height, width = workload.shape
    shape = (batch, channels, frames + workload.kernel_size[0] - 1, height, width)
    arguments = (workload.stride, (1, 1, 1), "valid")
    work = conv_spec.flops(shape, workload.weight_shape, *arguments)
    moved = conv_spec.bytes_moved(shape, workload.weight_shape, itemsize, *arguments)
    return _floor(work, moved, gpu)


def pad_floor(workload: Workload, gpu: Gpu, *, in_place: bool, itemsize: int = 2) -> Floor:
    """Return the floor of the padding in front of a convolution.

    Args:
        workload: The convolution, whose kernel has more than one frame.
        gpu: Where it runs.
        in_place: `causal_pad3d_`, which writes the border only, or `causal_pad3d`, which copies the frames.
        itemsize: Bytes per element.
    """
    frames = workload.kernel_size[0] - 1
    moved = pad_spec.bytes_moved(workload.shape, frames, (0, 0, 0, 0), itemsize, in_place=in_place)
    return _floor(0, moved, gpu)


def _floor(work: int, moved: int, gpu: Gpu) -> Floor:
    return Floor(work, moved, work / gpu.tflops / 1e9, moved / gpu.gbps / 1e6)
