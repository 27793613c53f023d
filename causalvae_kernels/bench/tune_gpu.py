"""What `tune --device cuda` measures: for each op its table, and the races that fill it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..core.tuned import Tuned
from ..ops.causal_conv3d.shape_class import TUNED as CONV_TUNED
from ..ops.causal_pad3d.size_class import TUNED as PAD_TUNED
from ..ops.norms.measured import GROUP_NORM, RMS_NORM, SPATIAL_NORM
from . import tune_gpu_conv, tune_gpu_norm, tune_gpu_pad
from .race import Job

BACKEND, DEFAULT = "triton", "aten"


@dataclass(frozen=True)
class Tunable:
    """An op that is measured, together with its twin in place.

    Attributes:
        tuned: Where its measurements are.
        jobs: Returns its races in these dtypes.
    """

    tuned: Tuned
    jobs: Callable[[Sequence[torch.dtype]], list[Job]]


TUNABLE = {
    "causal_conv3d": Tunable(CONV_TUNED, tune_gpu_conv.jobs),
    "causal_pad3d": Tunable(PAD_TUNED, tune_gpu_pad.jobs),
    **{
        op: Tunable(measured.tuned, functools.partial(tune_gpu_norm.jobs, op))
        for op, measured in (
            ("group_norm_silu", GROUP_NORM),
            ("spatial_norm_silu", SPATIAL_NORM),
            ("rms_norm_silu", RMS_NORM),
        )
    },
}
