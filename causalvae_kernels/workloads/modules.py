"""Norms and upsamplers of the VAEs by name: the modules that the benchmarks run beside our ops.

Sizes are those of a chunk at a fifth of full height and width, so that a CPU has them in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NormWorkload:
    """A norm with SiLU behind it.

    Attributes:
        op: "spatial_norm", "group_norm" or "rms_norm".
        channels: Of the frames.
        size: (T, H, W) of the frames.
        latent: (t, h, w) of the latents, for the spatial norm.
    """

    op: str
    channels: int
    size: tuple[int, int, int]
    latent: tuple[int, int, int] | None = None

    @property
    def name(self) -> str:
        """Such as "128-9x96x144"."""
        return f"{self.channels}-{'x'.join(map(str, self.size))}"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(B, C, T, H, W)."""
        return (1, self.channels, *self.size)


@dataclass(frozen=True)
class UpsampleWorkload:
    """An upsampler and its convolution.

    Attributes:
        family: "CogVideoX", "Wan" or "HunyuanVideo".
        channels: Of the input.
        out_channels: Of the output.
        size: (T, H, W) of the input.
        scale: (time, height, width).
    """

    family: str
    channels: int
    out_channels: int
    size: tuple[int, int, int]
    scale: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Such as "Wan 384x192-2x60x104 1x2x2"."""
        size, scale = ("x".join(map(str, numbers)) for numbers in (self.size, self.scale))
        return f"{self.family} {self.channels}x{self.out_channels}-{size} {scale}"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(B, Cin, T, H, W) of the input."""
        return (1, self.channels, *self.size)


_LATENT = (3, 12, 18)

NORM_WORKLOADS: tuple[NormWorkload, ...] = (
    # CogVideoX: the decoder's norms, a first chunk of 9 frames 96x144; the encoder's
    NormWorkload("spatial_norm", 128, (9, 96, 144), _LATENT),
    NormWorkload("spatial_norm", 256, (9, 48, 72), _LATENT),
    NormWorkload("spatial_norm", 256, (5, 24, 36), _LATENT),
    NormWorkload("spatial_norm", 512, (3, 12, 18), _LATENT),
    NormWorkload("group_norm", 128, (9, 96, 144)),
    NormWorkload("group_norm", 256, (5, 48, 72)),
    NormWorkload("group_norm", 512, (3, 12, 18)),
    # Wan 2.1
    NormWorkload("rms_norm", 96, (4, 120, 208)),
    NormWorkload("rms_norm", 192, (4, 60, 104)),
    NormWorkload("rms_norm", 384, (2, 60, 104)),
)

UPSAMPLE_WORKLOADS: tuple[UpsampleWorkload, ...] = (
    UpsampleWorkload("CogVideoX", 512, 512, (3, 12, 18), (2, 2, 2)),
    UpsampleWorkload("CogVideoX", 256, 256, (5, 24, 36), (2, 2, 2)),
    UpsampleWorkload("CogVideoX", 256, 256, (9, 48, 72), (1, 2, 2)),
    UpsampleWorkload("Wan", 384, 192, (2, 30, 52), (1, 2, 2)),
    UpsampleWorkload("Wan", 384, 192, (4, 30, 52), (1, 2, 2)),
    UpsampleWorkload("Wan", 192, 96, (4, 60, 104), (1, 2, 2)),
    UpsampleWorkload("HunyuanVideo", 256, 256, (3, 16, 16), (2, 2, 2)),
    UpsampleWorkload("HunyuanVideo", 128, 128, (5, 24, 24), (2, 2, 2)),
)
