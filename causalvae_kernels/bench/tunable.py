"""What `tune` measures by races: by kind of device and op, the table and the races that fill it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..core.tuned import Tuned
from ..ops.causal_conv3d.measurements import TUNED as CONV_TUNED
from ..ops.causal_pad3d.measurements import TUNED as PAD_TUNED
from ..ops.downsample_conv.measurements import TUNED as DOWNSAMPLE_TUNED
from ..ops.norms.measurements import GROUP_NORM, RMS_NORM, SPATIAL_NORM
from ..ops.upsample_conv.measurements import TUNED as UPSAMPLE_TUNED
from . import tune_gpu_conv, tune_gpu_pad, tune_gpu_resampling, tune_norms, tune_resampling
from .race import Job

# What a table's rows are of unless they say otherwise.
BACKEND = {"cpu": "cpu", "cuda": "triton"}
DEFAULT = "aten"


@dataclass(frozen=True)
class Tunable:
    """An op that is measured, fresh and in place.

    Attributes:
        tuned: Where its measurements are.
        jobs: Returns its races in these dtypes.
    """

    tuned: Tuned
    jobs: Callable[[Sequence[torch.dtype]], list[Job]]


def _norms(jobs: Callable[[str, Sequence[torch.dtype]], list[Job]]) -> dict[str, Tunable]:
    tables = {"group_norm": GROUP_NORM, "rms_norm": RMS_NORM, "spatial_norm": SPATIAL_NORM}
    return {op: Tunable(table.tuned, functools.partial(jobs, op)) for op, table in tables.items()}


TUNABLE: dict[str, dict[str, Tunable]] = {
    # causal_conv3d has a grid of its own there: `bench.tune`.
    "cpu": {
        "downsample_conv": Tunable(DOWNSAMPLE_TUNED, tune_resampling.downsample_jobs),
        "upsample_conv": Tunable(UPSAMPLE_TUNED, tune_resampling.upsample_jobs),
        **_norms(tune_norms.cpu_jobs),
    },
    "cuda": {
        "causal_conv3d": Tunable(CONV_TUNED, tune_gpu_conv.jobs),
        "causal_pad3d": Tunable(PAD_TUNED, tune_gpu_pad.jobs),
        "downsample_conv": Tunable(DOWNSAMPLE_TUNED, tune_gpu_resampling.downsample_jobs),
        "upsample_conv": Tunable(UPSAMPLE_TUNED, tune_gpu_resampling.upsample_jobs),
        **_norms(tune_norms.gpu_jobs),
    },
}
