"""What a model does to the clips of a data set as it is shipped, and what each way out would do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.errors import InvalidInput
from ..temporal import FramePlan, FrameRule, plan_frames
from .clips import Clip

POLICIES = ("any", "pad", "trim", "valid")
"""Ways to take a clip: any number of frames in an adapted model; padded; trimmed; only if it is valid."""


@dataclass(frozen=True)
class ClipCheck:
    """What becomes of a clip.

    Attributes:
        clip: The clip.
        shipped: Frames that come back from the model as it is shipped; None where it fails.
        verdict: What that does to the clip, in words; "fine" where every frame comes back as trained.
        plans: By policy of `POLICIES`, what runs; a policy that has no valid count is absent.
        unit: Of which width and height must be multiples.
    """

    clip: Clip
    shipped: int | None
    verdict: str
    plans: dict[str, FramePlan]
    unit: int

    @property
    def size_fits(self) -> bool:
        """Whether width and height are multiples of the model's unit."""
        return self.clip.reason is None and not (self.clip.width % self.unit or self.clip.height % self.unit)

    @property
    def harmed(self) -> bool:
        """Whether the model as shipped would lose, add or spoil frames, or fail, or the file is broken."""
        return self.verdict != "fine" or not self.size_fits

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        clip = self.clip
        return {
            "source": clip.source,
            "path": str(clip.path),
            "reason": clip.reason,
            "frames": clip.frames,
            "fps": float(clip.fps) or None,
            "width": clip.width or None,
            "height": clip.height or None,
            "shipped_frames": self.shipped,
            "verdict": self.verdict,
            "policies": {name: counts(plan) for name, plan in self.plans.items()},
            "size_fits": self.size_fits,
            "harmed": self.harmed,
        }


def counts(plan: FramePlan) -> dict[str, int]:
    """Return how many frames of the clip are used, how many the model runs, and the latents they become."""
    return {"frames": plan.kept_frames, "run_frames": plan.run_frames, "latents": plan.num_latents}


def check_clip(clip: Clip, rule: FrameRule, unit: int) -> ClipCheck:
    """Say what becomes of a clip that was probed.

    Args:
        clip: As `probe_clip` returns it.
        rule: Of the model.
        unit: Of which width and height must be multiples.
    """
    if clip.reason is not None or not clip.frames:
        return ClipCheck(clip, None, "broken", {}, unit)
    plans = {}
    for policy in POLICIES:
        try:
            plans[policy] = plan_of(clip.frames, rule, policy)
        except InvalidInput:  # no valid count on that side
            continue
    return ClipCheck(clip, rule.round_trip(clip.frames), shipped_verdict(clip.frames, rule), plans, unit)


def plan_of(num_frames: int, rule: FrameRule, policy: str) -> FramePlan:
    """Return the plan for a number of frames under a policy of `POLICIES`.

    Raises:
        InvalidInput: There is no valid count.
    """
    if policy == "any":
        return plan_frames(num_frames, rule, "pad", adapted=True)
    return plan_frames(num_frames, rule, "raise" if policy == "valid" else policy)


def shipped_verdict(num_frames: int, rule: FrameRule) -> str:
    """Say in words what a model as it is shipped does to a number of frames; "fine" where it does no harm."""
    if rule.is_valid(num_frames):
        return "fine"
    out = rule.round_trip(num_frames)
    if out is None:
        return "fails"
    spoilt = [] if rule.codec.aligned(num_frames) and not rule.lead_frames else ["spoils the first frames"]
    if out < num_frames:
        spoilt.insert(0, f"{'loses' if spoilt else 'drops the last'} {num_frames - out}")
    elif out > num_frames:
        spoilt.insert(0, f"adds {out - num_frames}")
    return ", ".join(spoilt) or "moves frames"
