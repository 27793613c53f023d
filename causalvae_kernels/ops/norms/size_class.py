"""The size classes of norms: what was measured for calls like one, whether into a buffer or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.size_class import measured_by_size
from ...core.tuned import Measurement, Tuned

_OPS = Path(__file__).parent.parent
GROUP_NORM = Tuned(_OPS / "group_norm_silu" / "tuned")
RMS_NORM = Tuned(_OPS / "rms_norm_silu" / "tuned")
SPATIAL_NORM = Tuned(_OPS / "spatial_norm_silu" / "tuned")

Find = Callable[..., Measurement | None]


def finders(tuned: Tuned) -> tuple[Find, Find]:
    """Return what finds the measurement for a call of a norm, and for one of its twin that writes in place.

    Their arguments are those of the operators.
    """

    def measured(x: Tensor, *others: Any) -> Measurement | None:
        return measured_by_size(tuned, x, written=x.numel())

    def measured_into(out: Tensor, x: Tensor, *others: Any) -> Measurement | None:
        return measured_by_size(tuned, out, x, written=x.numel())

    return measured, measured_into
