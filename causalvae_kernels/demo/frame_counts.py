"""What CogVideoX's VAE does to numbers of frames that it was not trained on, in a sentence.

As shipped, it encodes and decodes in chunks and knows a first frame only by an odd length of the first chunk.
1 and 8k+1 frames keep that length odd at every level; other counts do not (see diffusers'
``CogVideoXUpsample3D`` and ``CogVideoXDownsample3D``).
"""

from __future__ import annotations

_PERIOD = 8


def is_trained_count(num_frames: int) -> bool:
    """Whether the model was trained on such a number of frames (1, 9, 17, …)."""
    return num_frames % _PERIOD == 1


def frame_count_warning(num_frames: int, num_out: int) -> str | None:
    """One sentence about a count that does not make the round trip, or None.

    Args:
        num_frames: Frames that went in.
        num_out: Frames that came out.
    """
    if is_trained_count(num_frames) and num_frames == num_out:
        return None
    nearest = " and ".join(str(count) for count in nearest_trained_counts(num_frames))
    happened = f"{num_frames} frames went in and {num_out} came out"
    if num_frames != num_out:
        happened += f" (the last {min(num_frames, num_out)} of both are compared)"
    return (
        f"{happened}: CogVideoX's VAE was trained on 1 or 8k+1 frames, and with another number it blends its "
        f"first frames with others; nearest good counts: {nearest}"
    )


def nearest_trained_counts(num_frames: int) -> tuple[int, ...]:
    """The good count below and the one above; the count itself if it is good."""
    if is_trained_count(num_frames):
        return (num_frames,)
    below = (num_frames - 1) // _PERIOD * _PERIOD + 1
    return (below, below + _PERIOD)
