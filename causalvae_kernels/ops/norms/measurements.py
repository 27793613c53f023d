"""What was measured of the norm ops, by size class: a folder of files for each op."""

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
        op: Its name.
    """

    def __init__(self, op: str) -> None:
        self.tuned = Tuned(Path(__file__).parent.parent / op / "tuned", multiplies=False, op=op)

    def measured(self, args: Any, precision: str, out: Tensor | None) -> Measurement | None:
        """Return what was measured for calls like this one."""
        variant = "" if out is None else INTO
        return measured_by_size(self.tuned, args.x, out, written=args.x.numel(), variant=variant)


GROUP_NORM = NormMeasurements("group_norm")
SPATIAL_NORM = NormMeasurements("spatial_norm")
RMS_NORM = NormMeasurements("rms_norm")
