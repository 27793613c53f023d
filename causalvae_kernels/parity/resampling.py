"""Parity of the resampling convolutions; the kernel in Triton is judged as in `causal_conv3d`."""

from __future__ import annotations

from typing import Any

from ..core.checks import int_tuple
from ..core.op import explain
from ..ops import downsample_conv, upsample_conv
from ..ops.causal_conv3d.spec import error_factor, long_sum_error
from ..ops.upsample_conv import spec as upsample_spec
from .compare import Comparison, compare, compare_exactly
from .draws import in_float64, reference_draws


def compare_upsample(call: dict[str, Any], backend: str, precision: str = "high") -> Comparison:
    """Compare one call of `upsample_conv` with the reference and the fp64 oracle."""
    got = upsample_conv(**call, backend=backend, precision=precision)
    if precision == "exact":
        return compare_exactly(got, upsample_conv(**call, backend="reference", precision=precision))
    chosen = explain("upsample_conv", **call, backend=backend, precision=precision).chosen
    scale = int_tuple("verify", "scale", call.get("scale", (1, 2, 2)), 3)
    dtype, weight_shape = call["x"].dtype, call["weight"].shape
    winograd = chosen == "cpu" and upsample_spec.takes_winograd(weight_shape, scale, call["x"].shape[3:])
    references, oracle = reference_draws(upsample_conv, call), in_float64(upsample_conv, call)
    comparison = compare(got, references, oracle, *error_factor(dtype, winograd))
    if chosen != "triton":
        return comparison
    folded = (*weight_shape[:2], *upsample_spec.folded_kernel(weight_shape[2:], scale))
    return comparison.allowing(*long_sum_error(dtype, folded, chosen))


def compare_downsample(call: dict[str, Any], backend: str, precision: str = "high") -> Comparison:
    """Compare one call of `downsample_conv` with the reference and the fp64 oracle."""
    got = downsample_conv(**call, backend=backend, precision=precision)
    if precision == "exact":
        return compare_exactly(got, downsample_conv(**call, backend="reference", precision=precision))
    references, oracle = reference_draws(downsample_conv, call), in_float64(downsample_conv, call)
    comparison = compare(got, references, oracle, *error_factor(call["x"].dtype))
    chosen = explain("downsample_conv", **call, backend=backend, precision=precision).chosen
    if chosen != "triton":
        return comparison
    return comparison.allowing(*long_sum_error(call["x"].dtype, call["weight"].shape, chosen))
