"""Time as the VAE sees it: the state of a stream and storage with room for it. Knows no kernel."""

from .frame_buffer import FrameBuffer
from .state import final_state

__all__ = ["FrameBuffer", "final_state"]
