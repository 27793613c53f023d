"""What to do with a number of frames that a VAE does not take: a plan before any work, and its undoing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import memory
from ..core.checks import check_choice, check_count, check_countable, check_video
from ..core.errors import InvalidInput
from ..core.layout import memory_format_of
from .frame_rule import FrameRule, frame_rule

POLICIES = ("raise", "pad", "trim")
FILLS = ("repeat", "mirror", "linear")
DEFAULT_FILL = "repeat"


@dataclass(frozen=True)
class FramePlan:
    """How many frames are encoded, decoded and kept, for a number of frames and a policy.

    Attributes:
        model: Name of the model.
        num_frames: Frames that are given.
        run_frames: Frames that are encoded.
        num_latents: Latents that they encode to.
        decoded_frames: Frames that these decode to.
        kept_frames: Frames that `undo` returns.
        policy: "raise", "pad" or "trim".
        fill: Where added frames come from: "repeat", "mirror" or "linear".
        lead_frames: Copies of the first frame that the model wants in front; its decoder drops them.
        time_dim: The dimension of time in what the model decodes.
    """

    model: str
    num_frames: int
    run_frames: int
    num_latents: int
    decoded_frames: int
    kept_frames: int
    policy: str
    fill: str
    lead_frames: int = 0
    time_dim: int = 2

    def apply(self, video: Tensor) -> Tensor:
        """Return the frames to encode.

        Args:
            video: Shape (B, C, num_frames, H, W), any dtype.

        Returns:
            Shape (B, C, run_frames, H, W); `video` itself if nothing changes, a view of it if frames are cut
            off, else a tensor of its own with the dtype, device and memory format of `video`.

        Raises:
            InvalidInput: The shape is another one.
        """
        check_video("FramePlan.apply", "video", video, empty_batch=True)
        if video.shape[2] != self.num_frames:
            raise InvalidInput(
                f"FramePlan.apply: video has {video.shape[2]} frames (shape {tuple(video.shape)}), "
                f"expected {self.num_frames}, for which the plan was made ({self})"
            )
        given = min(self.run_frames - self.lead_frames, self.num_frames)
        if given < self.num_frames:
            video = video.narrow(2, 0, given)
        return pad_frames(video, self.run_frames, self.fill, lead=self.lead_frames)

    def undo(self, frames: Tensor) -> Tensor:
        """Return the reconstruction of the given frames: the first `kept_frames` that the model decoded.

        Args:
            frames: What the model decoded, shape (B, C, decoded_frames, H, W), for Allegro
                (B, decoded_frames, C, H, W); any dtype.

        Returns:
            The first `kept_frames` frames, in memory of their own; `frames` itself if nothing is cut off.

        Raises:
            InvalidInput: The shape is another one.
        """
        check_video("FramePlan.undo", "frames", frames, empty_batch=True)
        given = frames.shape[self.time_dim]
        if given != self.decoded_frames:
            raise InvalidInput(
                f"FramePlan.undo: frames has {given} frames (dimension {self.time_dim} of shape "
                f"{tuple(frames.shape)}), expected {self.decoded_frames} ({self})"
            )
        return memory.cut(frames, self.time_dim, 0, self.kept_frames)

    def __str__(self) -> str:
        words = f"{self.model}: {count(self.num_frames, 'frame')}"
        more = self.run_frames - self.lead_frames - self.num_frames
        how = {"repeat": "repeated", "mirror": "mirrored", "linear": "continued"}[self.fill]
        changes = [f"{self.lead_frames} repeated in front"] if self.lead_frames else []
        if more:
            changes += [f"{more} {how} at the end" if more > 0 else f"the last {-more} dropped"]
        if changes:
            words += f" → {self.run_frames} ({', '.join(changes)})"
        words += f" → {count(self.num_latents, 'latent')} → {self.decoded_frames}"
        if self.kept_frames != self.decoded_frames:
            words += f" → {self.kept_frames} kept"
        return words


def plan_frames(
    num_frames: int, rule: object, policy: str = "raise", *, fill: str = DEFAULT_FILL, adapted: bool = False
) -> FramePlan:
    """Plan how a number of frames is handled, before anything runs.

    Args:
        num_frames: Frames at hand.
        rule: A `FrameRule`, or anything that `frame_rule` takes.
        policy: What to do with a count that does not make the round trip. "raise": raise. "pad": add frames
            at the end, where no causal convolution carries them into earlier ones; `undo` returns exactly
            `num_frames`. "trim": drop the last frames.
        fill: What "pad" adds: "repeat" the last frame, "mirror" the clip (the last frame is not doubled), or
            "linear", the last frame plus 1, 2, … times its difference to the one before, within the range of
            values of each clip.
        adapted: Plan for a model that was adapted (`swap(vae, frames="any")`).

    Returns:
        The plan; it takes the smallest count that serves.

    Raises:
        InvalidInput: The count is not a positive integer, or not valid while the policy is "raise", or no
            smaller one ("trim") or larger one ("pad") is.
    """
    check_choice("plan_frames", "policy", policy, POLICIES)
    check_choice("plan_frames", "fill", fill, FILLS)
    num_frames = check_count("plan_frames", "num_frames", num_frames)
    rule = frame_rule(rule)
    kept = whole = num_frames
    lead = 0
    if not rule.is_valid(num_frames, adapted=adapted):
        lead = rule.lead_frames
        whole = rule.nearest(num_frames, below=policy == "trim", adapted=adapted)
        if policy == "raise" or whole is None:
            raise InvalidInput(_refusal(num_frames, rule, adapted))
        kept = min(kept, whole)
    latents = rule.num_latents(whole + lead, adapted=adapted)
    return FramePlan(
        model=rule.name,
        num_frames=num_frames,
        run_frames=whole + lead,
        num_latents=latents,
        decoded_frames=whole,
        kept_frames=kept,
        policy=policy,
        fill=fill,
        lead_frames=lead,
        time_dim=rule.time_dim,
    )


def pad_frames(video: Tensor, num_frames: int, fill: str = DEFAULT_FILL, *, lead: int = 0) -> Tensor:
    """Add frames at the end of a video.

    Args:
        video: Shape (B, C, T, H, W), any dtype.
        num_frames: Frames of the result, at least T + `lead`.
        fill: "repeat": x[T-1+i] = x[T-1]. "mirror": x[T-1+i] = x[T-1-i], to and fro if T is short. "linear":
            x[T-1+i] = x[T-1] + i * (x[T-1] - x[T-2]), clamped to the least and largest value of each clip of
            the batch, computed in float32 (float64 in float64, integers in int64). One frame is repeated.
        lead: How many of the added frames stand in front, as copies of the first one.

    Returns:
        Shape (B, C, num_frames, H, W) with the dtype, device and memory format of `video`; `video` itself if
        it has that many frames.

    Raises:
        InvalidInput: No video, an unknown fill, or fewer frames than the video has.
    """
    check_video("pad_frames", "video", video, empty_batch=True)
    check_choice("pad_frames", "fill", fill, FILLS)
    batch, channels, given, height, width = video.shape
    end = lead + given
    if not _is_int(num_frames) or num_frames < end:
        raise InvalidInput(
            f"pad_frames: num_frames is {num_frames!r}, expected an int of at least {end}: the video's "
            f"{given} frames, and {lead} in front"
        )
    if num_frames == given:
        return video
    shape = (batch, channels, num_frames, height, width)
    check_countable("pad_frames", "the padded video", shape, video.dtype)
    padded = memory.empty(
        shape,
        dtype=video.dtype,
        device=video.device,
        memory_format=memory_format_of(video),
    )
    padded[:, :, lead:end] = video
    if lead:
        padded[:, :, :lead] = video[:, :, :1]
    if fill == "repeat" or given == 1:
        padded[:, :, end:] = video[:, :, -1:]
    elif fill == "mirror":
        for index in range(given, num_frames - lead):
            padded[:, :, lead + index] = video[:, :, _bounced(index, given)]
    else:
        _continue(padded, video, end)
    return padded


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bounced(index: int, length: int) -> int:
    """Return the frame that a ball at `index` is at when it bounces between frame 0 and the last one."""
    index %= 2 * (length - 1)
    return min(index, 2 * (length - 1) - index)


def _continue(padded: Tensor, video: Tensor, end: int) -> None:
    """Write the straight continuation of the last two frames from `end` on."""
    exact = torch.float32 if video.dtype.is_floating_point else torch.int64
    exact = torch.promote_types(exact, video.dtype)
    clip = (1, 2, 3, 4)
    least, most = (bound(video, clip, keepdim=True)[:, :, 0].to(exact) for bound in (torch.amin, torch.amax))
    last = video[:, :, -1].to(exact)
    step = last - video[:, :, -2].to(exact)
    for frame in range(end, padded.shape[2]):
        padded[:, :, frame] = torch.clamp(last + (frame - end + 1) * step, least, most).to(video.dtype)


def count(number: int, noun: str) -> str:
    """Return "1 frame", "2 frames"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _refusal(num_frames: int, rule: FrameRule, adapted: bool) -> str:
    """Return the sentence on why a count cannot be used, and what can be done."""
    out = rule.round_trip(num_frames, adapted=adapted)
    happens = "the model refuses them" if out is None else f"{count(out, 'frame')} would come out"
    if out == num_frames:
        happens = "as many would come out, some of them wrong"
    below, above = (rule.nearest(num_frames, below=below, adapted=adapted) for below in (True, False))
    words = (
        f"plan_frames: {count(num_frames, 'frame')} for {rule.name}, which takes {rule.words(adapted)}: "
        f"{happens}; nearest valid counts: {below or 'none'} below, {above or 'none'} above; "
    )
    policies = []
    if above:
        policies.append("'pad' (adds frames, returns all given ones)")
    if below:
        policies.append("'trim' (drops the last frames)")
    return f"{words}policies that help: {' and '.join(policies) or 'none'}"
