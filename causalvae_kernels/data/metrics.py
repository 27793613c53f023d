"""How far two videos are apart, per frame."""

from __future__ import annotations

import math

from torch import Tensor


def frame_mse(video: Tensor, target: Tensor) -> list[float]:
    """Mean squared error of each frame.

    Args:
        video: (T, C, H, W), pixels in [0, 1].
        target: The same shape.

    Returns:
        T numbers: the mean of ``(video - target)²`` over channels and pixels, computed in float64.
    """
    return (video.double() - target.double()).square().mean(dim=(1, 2, 3)).tolist()


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1]: ``10 log10(1 / mse)``; infinite for no error."""
    if mse == 0:
        return math.inf
    return -10 * math.log10(mse)


def frame_max_difference(a: Tensor, b: Tensor) -> list[float]:
    """Largest absolute difference of each frame; NaN where one of them holds NaN.

    Args:
        a: (T, C, H, W).
        b: The same shape.

    Returns:
        T numbers.
    """
    return (a.float() - b.float()).abs().amax(dim=(1, 2, 3)).tolist()
