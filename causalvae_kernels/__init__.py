"""Fused causal 3D convolution ops for video VAEs, and a swap that puts them into diffusers' models."""

from .core.errors import BackendUnavailable, CausalVAEError, InvalidInput
from .core.op import explain
from .core.packed import packed_size, release_packed_weights, use_packed_budget
from .core.precision import use_precision
from .core.selection import use_backend
from .models import MemoryPlan, plan_memory, restore, swap
from .ops import (
    causal_conv3d,
    causal_pad3d,
    causal_pad3d_,
    downsample_conv,
    group_norm,
    rms_norm,
    spatial_norm,
    upsample_conv,
)
from .temporal import FrameBuffer, FramePlan, FrameRule, frame_rule, pad_frames, plan_frames

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "CausalVAEError",
    "FrameBuffer",
    "FramePlan",
    "FrameRule",
    "InvalidInput",
    "MemoryPlan",
    "causal_conv3d",
    "causal_pad3d",
    "causal_pad3d_",
    "downsample_conv",
    "explain",
    "frame_rule",
    "group_norm",
    "packed_size",
    "pad_frames",
    "plan_frames",
    "plan_memory",
    "release_packed_weights",
    "restore",
    "rms_norm",
    "spatial_norm",
    "swap",
    "upsample_conv",
    "use_backend",
    "use_packed_budget",
    "use_precision",
]
