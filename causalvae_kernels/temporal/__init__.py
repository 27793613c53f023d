"""Time as the VAE sees it: frame counts, the state of a stream, storage with room for it. Knows no kernel."""

from .frame_buffer import FrameBuffer
from .frame_policy import DEFAULT_FILL, FILLS, POLICIES, FramePlan, pad_frames, plan_frames
from .frame_rule import FrameRule, frame_rule
from .state import final_state

__all__ = [
    "DEFAULT_FILL",
    "FILLS",
    "POLICIES",
    "FrameBuffer",
    "FramePlan",
    "FrameRule",
    "final_state",
    "frame_rule",
    "pad_frames",
    "plan_frames",
]
