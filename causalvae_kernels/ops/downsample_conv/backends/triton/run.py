"""The Triton launches of a downsampling convolution."""

from __future__ import annotations

from torch import Tensor

from .....core import memory
from .....core.layout import memory_format_of
from .....core.triton_launch import Launch
from ....causal_conv3d.backends.triton.call import Call
from ....causal_conv3d.backends.triton.kernels import direct
from ....causal_conv3d.backends.triton.tiles import Tile, choose
from ...spec import HALO, STRIDE, DownsampleArgs
from .average import launch as average


def launches(out: Tensor, args: DownsampleArgs, capability: int, tile: Tile | None = None) -> list[Launch]:
    """Return the kernels that compute `out`, in order.

    Args:
        out: The output.
        args: Those of the op.
        capability: Of the GPU, such as 90.
        tile: How the convolution is cut; default: chosen.
    """
    x, before = args.x, []
    if out.shape[2] < x.shape[2]:
        lone = x.shape[2] % 2
        shape = (*x.shape[:2], out.shape[2], *x.shape[3:])
        averaged = memory.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
        first, second = x[:, :, lone::2], x[:, :, lone + 1 :: 2]
        before.append(average(averaged[:, :, lone:], first, second))
        averaged[:, :, :lone].copy_(x[:, :, :lone])
        x = averaged
    call = Call(
        x,
        args.weight,
        None if args.bias is None else args.bias.contiguous(),
        None,
        None,
        out,
        STRIDE,
        (1, 1, 1),
        window=(1, 3, 3),
        frame_taps=9,
        causal=0,
        front=0,
        top=HALO[0],
        left=HALO[2],
        temporal_mode="valid",
        spatial_mode="zeros",
    )
    return [*before, direct(call, choose(call, capability, tile))]
