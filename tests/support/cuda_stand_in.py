"""A stand-in for the CUDA module, for tests of what the backends `cuda` ask of it.

It pads with the threads of the CUDA kernel, one after another, checks the arguments of a convolution as the
module does, and computes it by its definition in float64.
"""

from __future__ import annotations

import ctypes
import math

import torch
import torch.nn.functional as F

from tests.support import emulation

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def tensor_at(description, dtype):
    """The memory that (address, sizes, strides) describes, as a tensor."""
    address, sizes, strides = description
    span = 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    memory = (ctypes.c_char * (span * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(sizes, strides)


class OnTheHost:
    """The CUDA module without a GPU; it counts convolutions, their multiplications, and bytes of padding."""

    def __init__(self):
        self.emulation = emulation.load()
        self.time_taps = self.emulation.time_taps
        self.convolutions, self.written, self.multiplications = [], 0, 0

    def causal_pad3d(self, out, x, state, padding, sides, temporal_mode, spatial_mode, itemsize, *target):
        assert target == (0, 7)
        *_, width, _, written = self.emulation.causal_pad3d(
            out, x, state, padding, sides, temporal_mode, spatial_mode, itemsize
        )
        self.written += width * written

    def causal_pad3d_(self, storage, *others):
        self.causal_pad3d(storage, None, *others)

    def causal_conv3d(
        self, out, x, weight, bias, residual, stride, dilation, before, after, dtype, device, stream
    ):
        assert (device, stream) == (0, 7)
        self.emulation.check_conv(out, x, weight, bias, residual, stride, dilation, before, after, dtype)
        kind = HALVES[dtype]
        self.convolutions.append({"taps": weight[1][2:], "frames": x[1][2], "before": before})
        self.multiplications += math.prod(out[1]) * math.prod(weight[1][1:])
        sides = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
        y = F.conv3d(
            F.pad(tensor_at(x, kind).double(), sides),
            tensor_at(weight, kind).double(),
            None if bias is None else tensor_at((bias, (out[1][1],), (1,)), kind).double(),
            stride,
            0,
            dilation,
        )
        if residual is not None:
            y += tensor_at(residual, kind).double()
        tensor_at(out, kind).copy_(y)
