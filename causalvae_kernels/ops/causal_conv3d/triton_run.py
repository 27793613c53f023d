"""Runs a convolution by a given plan."""

from __future__ import annotations

from ...core.triton_launch import Launch
from .triton_call import Call, packed
from .triton_fold import fold_single_frame
from .triton_kernels import direct
from .triton_tiles import Plan
from .triton_winograd import winograd


def launches(call: Call, plan: Plan) -> list[Launch]:
    """Return the kernels that compute `call.out`, in order.

    Args:
        call: The convolution.
        plan: What `choose` returned, or another plan; one of Winograd's form only where `why_no_winograd` has
            no objection.
    """
    if plan.winograd is not None:
        return winograd(call, plan.winograd, plan.direct)
    call, before = fold_single_frame(call)
    return [*before, direct(call, plan.direct, packed(call.weight), 0, call.out.shape[2])]


def run(call: Call, plan: Plan) -> None:
    """Put the kernels that compute `call.out` on the current stream; nothing waits for them."""
    for launch in launches(call, plan):
        launch.run()
