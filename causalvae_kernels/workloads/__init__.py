"""Named shapes of the real VAEs, small configurations of them, awkward calls, and inputs."""

from .cases import (
    CONV_CASES,
    PAD_CASES,
    ConvCase,
    PadCase,
    in_buffer,
    make_conv_call,
    make_pad_call,
    with_layout,
)
from .convolutions import FULL_SIZE, GATED, WORKLOADS, Workload
from .inputs import make_video
from .modules import NORM_WORKLOADS, UPSAMPLE_WORKLOADS, NormWorkload, UpsampleWorkload
from .norm_cases import NORM_CASES, NormCase, make_norm_call
from .resampling import (
    DOWNSAMPLE_CASES,
    FULL_SIZE_DOWNSAMPLE,
    FULL_SIZE_UPSAMPLE,
    UPSAMPLE_CASES,
    DownsampleCase,
    UpsampleCase,
    make_downsample_call,
    make_upsample_call,
)
from .vaes import cogvideox_2b_config, odd_cogvideox_config, small_cogvideox_config

__all__ = [
    "CONV_CASES",
    "DOWNSAMPLE_CASES",
    "FULL_SIZE",
    "FULL_SIZE_DOWNSAMPLE",
    "FULL_SIZE_UPSAMPLE",
    "GATED",
    "NORM_CASES",
    "NORM_WORKLOADS",
    "PAD_CASES",
    "UPSAMPLE_CASES",
    "UPSAMPLE_WORKLOADS",
    "WORKLOADS",
    "ConvCase",
    "NormCase",
    "NormWorkload",
    "DownsampleCase",
    "PadCase",
    "UpsampleCase",
    "UpsampleWorkload",
    "Workload",
    "cogvideox_2b_config",
    "in_buffer",
    "make_conv_call",
    "make_norm_call",
    "make_downsample_call",
    "make_pad_call",
    "make_upsample_call",
    "make_video",
    "odd_cogvideox_config",
    "small_cogvideox_config",
    "with_layout",
]
