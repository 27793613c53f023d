"""Parity of the resampling convolutions."""

from __future__ import annotations

from typing import Any

from ..core.checks import int_tuple
from ..core.op import explain
from ..ops import downsample_conv, upsample_conv
from ..ops.causal_conv3d.spec import error_factor
from ..ops.upsample_conv import spec as upsample_spec
from .compare import Comparison, compare, compare_exactly
from .draws import in_float64, reference_draws


def compare_upsample(call: dict[str, Any], backend: str, precision: str = "high") -> Comparison:
    """Compare one call of `upsample_conv` with the reference and the fp64 oracle."""
    got = upsample_conv(**call, backend=backend, precision=precision)
    if precision == "exact":
        return compare_exactly(got, upsample_conv(**call, backend="reference", precision=precision))
    ours = explain("upsample_conv", **call, backend=backend, precision=precision).chosen == "cpu"
    scale = int_tuple("verify", "scale", call.get("scale", (1, 2, 2)), 3)
    winograd = ours and upsample_spec.takes_winograd(call["weight"].shape, scale, call["x"].shape[3:])
    factor = error_factor(call["x"].dtype, winograd)
    return compare(got, reference_draws(upsample_conv, call), in_float64(upsample_conv, call), *factor)


def compare_downsample(call: dict[str, Any], backend: str, precision: str = "high") -> Comparison:
    """Compare one call of `downsample_conv` with the reference and the fp64 oracle."""
    got = downsample_conv(**call, backend=backend, precision=precision)
    if precision == "exact":
        return compare_exactly(got, downsample_conv(**call, backend="reference", precision=precision))
    factor = error_factor(call["x"].dtype)
    return compare(got, reference_draws(downsample_conv, call), in_float64(downsample_conv, call), *factor)
