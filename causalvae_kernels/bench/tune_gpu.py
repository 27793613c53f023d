"""What `tune --device cuda` measures: for each op its table, and the races that fill it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..core.tuned import Tuned
from ..ops.causal_conv3d.shape_class import TUNED as CONV_TUNED
from ..ops.causal_pad3d.size_class import TUNED as PAD_TUNED
from . import tune_gpu_conv, tune_gpu_pad
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
}
