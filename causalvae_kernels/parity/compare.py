"""The tolerance rule: a result may be a stated factor worse than the reference in the same dtype.

    err(kernel) <= factor * err(reference) + 1 ulp

against the fp64 oracle, once over the norm and once at the worst element. NaN never passes.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """How far a result is from the oracle, and how far it may be.

    Attributes:
        error: Norm of the difference over the norm of the oracle.
        allowed: What `error` may be.
        worst: Largest absolute difference over the oracle's largest magnitude.
        worst_allowed: What `worst` may be.
        complaint: Why it fails beyond any number: shape, dtype, a NaN; else None.
    """

    error: float
    allowed: float
    worst: float
    worst_allowed: float
    complaint: str | None = None

    @property
    def passed(self) -> bool:
        """Whether both errors are within what is allowed."""
        # Written so that a NaN, which compares false with everything, fails.
        return self.complaint is None and self.error <= self.allowed and self.worst <= self.worst_allowed

    def allowing(self, norm: float, worst: float) -> Comparison:
        """Return the same with this much more allowed, over the norm and at the worst element."""
        return replace(self, allowed=self.allowed + norm, worst_allowed=self.worst_allowed + worst)

    def __str__(self) -> str:
        """Return the figures on one line."""
        if self.complaint:
            return self.complaint
        return (
            f"error {self.error:.2e} (allowed {self.allowed:.2e}), "
            f"worst element {self.worst:.2e} (allowed {self.worst_allowed:.2e})"
        )


def compare(
    got: Tensor,
    reference: Tensor | Sequence[Tensor],
    oracle: Tensor,
    factor: float = 2.0,
    worst_factor: float | None = None,
) -> Comparison:
    """Apply the rule.

    Args:
        got: The result of a kernel.
        reference: What the reference gives in the same dtype; or several such results whose sums ran in
            different orders. A worst element is one draw of rounding errors, and a lucky one in a small
            tensor; of several, the largest error counts.
        oracle: What the reference gives in float64.
        factor: How many times the reference's error is allowed.
        worst_factor: The same at the worst element, for an algorithm whose error is not the same everywhere;
            by default `factor`.
    """
    references = [reference] if isinstance(reference, Tensor) else list(reference)
    nothing = float("nan")
    dtype = references[0].dtype
    if got.shape != oracle.shape or got.dtype != dtype:
        complaint = f"got shape {tuple(got.shape)} {got.dtype}, expected {tuple(oracle.shape)} {dtype}"
        return Comparison(nothing, 0.0, nothing, 0.0, complaint)
    got64, oracle64, *references64 = (t.detach().to("cpu", torch.float64) for t in (got, oracle, *references))
    bad = (~got64.isfinite() & oracle64.isfinite()).sum().item()
    if bad:
        return Comparison(
            nothing, 0.0, nothing, 0.0, f"{bad} values are NaN or infinite where the oracle's are not"
        )
    ulp = torch.finfo(dtype).eps
    worst_factor = factor if worst_factor is None else worst_factor
    norm = oracle64.norm().item() or 1.0
    largest = oracle64.abs().max().item() or 1.0
    # Where a reference overflowed it says nothing about what is allowed.
    differences = [got64 - oracle64, *((r - oracle64).where(r.isfinite(), 0.0) for r in references64)]
    error, *errors = (d.norm().item() / norm for d in differences)
    worst, *worsts = (d.abs().max().item() / largest for d in differences)
    return Comparison(error, factor * max(errors) + ulp, worst, worst_factor * max(worsts) + ulp)


def compare_clips(
    got: Tensor, references: Sequence[Tensor], oracle: Tensor, factor: float, worst_factor: float
) -> Comparison:
    """Apply the rule to what models made of several clips: in half precision to the medians over the clips.

    The norms of a small model spread the rounding of one activation over whole frames, so that the error of a
    single clip is a matter of luck, the reference's as well; in float32 the batch is compared as a whole.
    Arguments are those of `compare`, the batch in front.
    """
    if got.element_size() > 2 or got.shape != oracle.shape:
        return compare(got, references, oracle, factor, worst_factor)
    each = [
        compare(one, ones, truth, factor, worst_factor)
        for one, truth, *ones in zip(got, oracle, *references, strict=True)
    ]
    figures = zip(*((c.error, c.allowed, c.worst, c.worst_allowed) for c in each), strict=True)
    complaint = next((c.complaint for c in each if c.complaint), None)
    return Comparison(*map(statistics.median, figures), complaint)


def compare_exactly(got: Tensor, reference: Tensor) -> Comparison:
    """Require the same shape, dtype and bits; NaN equals nothing."""
    if got.shape != reference.shape or got.dtype != reference.dtype:
        complaint = (
            f"got shape {tuple(got.shape)} {got.dtype}, expected {tuple(reference.shape)} {reference.dtype}"
        )
        return Comparison(float("nan"), 0.0, float("nan"), 0.0, complaint)
    differing = (got != reference).sum().item()
    complaint = f"{differing} of {got.numel()} elements differ" if differing else None
    share = differing / got.numel()
    return Comparison(share, 0.0, share, 0.0, complaint)
