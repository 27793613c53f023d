"""Parity of what is timed beside a module of diffusers: held against that module in float64."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .compare import compare
from .outputs import ParityFailure, Providers


def check_module(
    providers: Providers,
    oracle: Tensor,
    judged: Sequence[str],
    factor: Sequence[float],
    allowance: Sequence[float],
    what: str,
) -> dict[str, float]:
    """Run every provider once and require parity of those that are judged.

    Of the others only the errors are told: torch's group norm on a CPU loses digits of channels-last frames.

    Args:
        providers: Name to callable; the first one is the unmodified module on contiguous frames.
        oracle: Its result in float64.
        judged: The names of ours.
        factor: Of the first provider's error, over the norm and at the worst element.
        allowance: What is allowed beside, over the norm and at the worst element.
        what: Names workload and dtype in the message.

    Returns:
        The relative error of each against float64.

    Raises:
        ParityFailure: One of those that are judged is off.
    """
    errors: dict[str, float] = {}
    reference = next(iter(providers.values()))()
    for name, provider in providers.items():
        comparison = compare(provider(), reference, oracle, *factor).allowing(*allowance)
        errors[name] = comparison.error
        if name in judged and not comparison.passed:
            raise ParityFailure(f"no timing without parity: {name}, {what}: {comparison}")
    return errors
