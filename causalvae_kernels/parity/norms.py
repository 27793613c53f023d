"""Parity of the norm ops, fresh and into a buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import group_norm, rms_norm, spatial_norm
from ..workloads import in_buffer
from .compare import Comparison, compare, compare_exactly

# By the name of the op.
NORMS: dict[str, Callable[..., Any]] = {
    "group_norm": group_norm,
    "rms_norm": rms_norm,
    "spatial_norm": spatial_norm,
}


def compare_norm(
    op: str, call: dict[str, Any], backend: str, *, in_place: bool = False, precision: str = "high"
) -> Comparison:
    """Compare one call of a norm op with the reference and the fp64 oracle.

    torch's group norm on a CPU loses digits of a channels-last tensor (5e-3 relative for randn * 0.1 + 3):
    only `aten`, which calls it, is allowed that; the others are held against the reference of a contiguous
    copy.

    Args:
        op: "group_norm", "spatial_norm" or "rms_norm".
        call: Its keyword arguments.
        backend: Name of the backend.
        in_place: Write into the body of a `FrameBuffer`.
        precision: Tier.
    """
    function = NORMS[op]
    keywords = {"backend": backend, "precision": precision}
    if in_place:
        buffer = in_buffer(torch.zeros_like(call["x"]), 2, (1, 1, 2, 0))
        function(**call, out=buffer, **keywords)
        got = buffer.body
        if not border_is_untouched(buffer.storage, buffer.body):
            return Comparison(float("nan"), 0.0, float("nan"), 0.0, "the border of the buffer was written")
    else:
        got = function(**call, **keywords)
    reference = function(**call, backend="reference", precision=precision)
    if precision == "exact":
        return compare_exactly(got, reference)
    call = _mapped(call, lambda t: t.contiguous())
    oracle = function(**_mapped(call, lambda t: t.double()), backend="reference")
    draws = [function(**call, backend="reference")]
    if backend == "aten":
        draws.append(reference)
    draws += [_redrawn(function, call, oracle, draw) for draw in range(1, _REFERENCE_DRAWS)]
    return compare(got, draws, oracle)


# How often the reference's rounding errors are drawn: of a few elements the largest may be none at all.
_REFERENCE_DRAWS = 4


def _redrawn(function: Callable[..., Tensor], call: dict[str, Any], oracle: Tensor, draw: int) -> Tensor:
    """Return the oracle with the errors that the reference makes of the same numbers in other places.

    Frames that are rolled meet other scales, shifts and parameters, and are as hard to normalise.
    """
    rolled = call | {"x": call["x"].roll((draw,) * 4, (1, 2, 3, 4))}
    truth = function(**_mapped(rolled, lambda t: t.double()), backend="reference")
    error = function(**rolled, backend="reference").double() - truth
    return oracle + error * (oracle.abs().max() / truth.abs().max().clamp_min(1e-30))


def border_is_untouched(storage: Tensor, body: Tensor) -> bool:
    """Whether everything but the body still holds the NaN that `in_buffer` filled it with."""
    kept = body.clone()
    body.fill_(float("nan"))
    untouched = bool(storage.isnan().all())
    body.copy_(kept)
    return untouched


def _mapped(call: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {name: change(v) if isinstance(v, Tensor) else v for name, v in call.items()}
