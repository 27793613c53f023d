"""Convolutions of real models, small enough for a test."""

from __future__ import annotations

from causalvae_kernels.workloads import ConvCase

# Channels and sizes of real models, so that whole tiles, their tails and several blocks all occur.
WIDE = (
    ConvCase("96 channels", (1, 96, 3, 20, 52), 96, layout="channels_last_3d", state=True),
    ConvCase("128, tails", (1, 128, 4, 31, 45), 128, layout="channels_last_3d", residual=True),
    ConvCase("160 to 320", (2, 160, 2, 22, 40), 320, layout="channels_last_3d", state=True, residual=True),
    ConvCase("512, two frames", (1, 512, 2, 15, 23), 512, layout="channels_last_3d"),
    ConvCase("256, one frame", (1, 256, 1, 30, 45), 256, layout="channels_last_3d"),
    ConvCase("256, one frame, zeros", (1, 256, 1, 30, 45), 256, options={"temporal_mode": "zeros"}),
    ConvCase("256, 2D", (1, 256, 3, 24, 36), 256, (1, 3, 3), "channels_last_3d"),
    ConvCase("384, 2D, stride", (1, 384, 2, 26, 38), 384, (1, 3, 3), options={"stride": (1, 2, 2)}),
    ConvCase("384 to 768, time only", (1, 384, 2, 30, 26), 768, (3, 1, 1), "channels_last_3d", True),
    ConvCase("16 to 512", (1, 16, 3, 30, 45), 512, layout="channels_last_3d"),
    ConvCase("128 to rgb", (1, 128, 3, 40, 56), 3, layout="channels_last_3d"),
)
