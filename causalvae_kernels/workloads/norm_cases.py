"""Awkward calls of the norm ops, by name: what parity is checked on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cases import with_layout


@dataclass(frozen=True)
class NormCase:
    """One call of each norm op.

    Attributes:
        name: What the case guards.
        shape: (B, C, T, H, W) of the frames.
        num_groups: Of the channels; the RMS norm knows none.
        latent: (t, h, w) of the spatial norm's scale and shift; None for those of the frames.
        layout: Strides of the frames, scale and shift: one of `cases.LAYOUTS`.
        affine: Give weight and bias; the RMS norm always has a weight.
        silu: Apply SiLU.
        mean: Of the frames.
        deviation: Of the frames, from their mean.
        eps: Given to the op; None: its default.
    """

    name: str
    shape: tuple[int, int, int, int, int]
    num_groups: int
    latent: tuple[int, int, int] | None = None
    layout: str = "contiguous"
    affine: bool = True
    silu: bool = True
    mean: float = 0.0
    deviation: float = 1.0
    eps: float | None = None


NORM_CASES: tuple[NormCase, ...] = (
    NormCase("plain", (1, 16, 5, 12, 10), 4, (3, 6, 5)),
    NormCase("one frame", (1, 8, 1, 9, 7), 2),
    NormCase("two frames, one group, batch", (2, 7, 2, 5, 6), 1, (1, 5, 3)),
    NormCase("channels last", (2, 64, 4, 6, 10), 32, (2, 3, 5), "channels_last_3d"),
    NormCase("channels last, upsampled by eight", (1, 48, 9, 8, 16), 16, (3, 1, 2), "channels_last_3d"),
    NormCase("far from zero", (1, 32, 3, 12, 20), 8, (2, 6, 10), mean=3.0, deviation=0.1),
    NormCase(
        "far from zero, channels last",
        (1, 32, 3, 24, 20),
        8,
        (2, 12, 10),
        "channels_last_3d",
        mean=3.0,
        deviation=0.1,
    ),
    NormCase("large values", (1, 8, 3, 5, 6), 2, (2, 5, 6), mean=-40.0, deviation=20.0),
    NormCase("small values", (1, 8, 3, 5, 6), 2, (2, 5, 6), deviation=1e-3),
    NormCase("small values beside eps", (2, 24, 3, 5, 6), 2, (2, 5, 6), deviation=1e-3, eps=1e-6),
    NormCase(
        "small values beside eps, channels last",
        (1, 37, 2, 5, 6),
        1,
        (2, 5, 6),
        "channels_last_3d",
        deviation=1e-3,
        eps=3e-6,
    ),
    NormCase("groups of one channel", (1, 6, 4, 5, 6), 6, (4, 5, 6)),
    NormCase("height of one", (1, 6, 3, 1, 17), 3, (2, 1, 17)),
    NormCase("width of one, channels last", (1, 20, 3, 17, 1), 5, (2, 17, 1), "channels_last_3d"),
    NormCase("one pixel, one channel", (1, 1, 1, 1, 1), 1),
    NormCase("one pixel, channels last", (2, 24, 1, 1, 1), 3, layout="channels_last_3d"),
    NormCase("no vector divides, batch", (2, 33, 3, 7, 19), 11, (2, 7, 19), "sliced"),
    NormCase("no vector divides, channels last", (2, 37, 3, 7, 9), 1, (3, 7, 9), "channels_last_3d"),
    NormCase("permuted", (2, 18, 4, 6, 5), 6, (2, 3, 5), "permuted"),
    NormCase("no repeats divide", (1, 8, 5, 6, 9), 2, (3, 4, 2)),
    NormCase("three times", (1, 8, 4, 6, 9), 2, (4, 2, 3), "channels_last_3d"),
    NormCase("no parameters, no activation", (1, 12, 3, 6, 7), 3, (2, 6, 7), affine=False, silu=False),
    NormCase("no activation, channels last", (1, 96, 2, 5, 8), 32, (1, 5, 4), "channels_last_3d", silu=False),
)


def make_norm_call(
    op: str, case: NormCase, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return fresh random keyword arguments of a norm op for a case.

    Args:
        op: "group_norm", "spatial_norm" or "rms_norm".
        case: The case.
        dtype: Of all tensors.
        seed: Of the values.
        device: Of all tensors.
    """
    generator = torch.Generator(device).manual_seed(seed)
    batch, channels = case.shape[:2]

    def random(*shape: int, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
        return (mean + deviation * torch.randn(shape, generator=generator, device=device)).to(dtype)

    x = random(*case.shape, mean=case.mean, deviation=case.deviation)
    call: dict[str, Any] = {"x": with_layout(x, case.layout), "activation": "silu" if case.silu else None}
    if case.eps is not None:
        call["eps"] = case.eps
    if op == "spatial_norm":
        for name, mean in (("scale", 1.0), ("shift", 0.0)):
            small = random(batch, channels, *(case.latent or case.shape[2:]), mean=mean, deviation=0.5)
            call[name] = with_layout(small, case.layout)
    if op != "rms_norm":
        call["num_groups"] = case.num_groups
    if case.affine or op == "rms_norm":
        call["weight"] = random(channels, mean=1.0, deviation=0.3)
    if case.affine:
        call["bias"] = random(channels, deviation=0.3)
    return call
