"""A tiny clip, and the setting of its reconstruction."""

from __future__ import annotations

import torch

from causalvae_kernels.demo.report import Setting

SETTING = Setting(
    clip="tiny.mp4",
    start=0,
    width=24,
    height=16,
    fps=24.0,
    model="small",
    note="a note",
    dtype="float32",
    device="a machine",
    threads=1,
    backend="auto",
    precision="high",
    versions={},
)


def tiny_clip(num_frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 16, 24, 3), dtype=torch.uint8, generator=generator)
