"""What was measured of the norm ops, by size class: a folder of files for each op and its twin in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.size_class import measured_by_size
from ...core.tuned import Measurement, Tuned

INTO = "into a buffer"


class NormMeasurements:
    """The measurements of an op.

    Args:
        op: Its name, without an underscore behind it.
    """

    def __init__(self, op: str) -> None:
        self.tuned = Tuned(Path(__file__).parent.parent / op / "tuned", multiplies=False)

    def fresh(self, x: Tensor, *others: Any) -> Measurement | None:
        """Return what was measured for calls like this one; the arguments of the op."""
        return measured_by_size(self.tuned, x, written=x.numel())

    def into(self, out: Tensor, x: Tensor, *others: Any) -> Measurement | None:
        """Return what was measured for calls like this one; the arguments of its twin."""
        return measured_by_size(self.tuned, x, out, written=x.numel(), variant=INTO)


GROUP_NORM = NormMeasurements("group_norm_silu")
SPATIAL_NORM = NormMeasurements("spatial_norm_silu")
RMS_NORM = NormMeasurements("rms_norm_silu")
