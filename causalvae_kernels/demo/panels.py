"""The side-by-side video: clip, reference, swapped, and their difference made visible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..core.optional import require
from .reconstruction import Reconstruction

_MIN_PANEL_WIDTH = 320  # below it a caption does not fit: pixels are repeated
_MAX_ROW_WIDTH = 1920  # above it the four panels stand two by two
_BAR_HEIGHT = 34
_GAP = 8
_FONT_SIZE = 17
_BACKGROUND = 18  # grey level of gaps and bars
_FOREGROUND = (235, 235, 235)
_SAMPLE = 1_000_000  # torch.quantile takes no more than 16 million values


def amplification(difference: Tensor) -> float:
    """The factor that makes a difference visible: one of 1, 2, 5, 10, 20, 50 and so on.

    All but the largest hundredth of the differences then stays below one half, so that the picture shows
    where the two differ and not only its few brightest pixels; the rest may saturate.

    Args:
        difference: Absolute differences of pixels in [0, 1], any shape.

    Returns:
        At least 1; 1 where there is no difference, or nothing finite.
    """
    values = difference.flatten()
    values = values[:: max(values.numel() // _SAMPLE, 1)]
    values = values[values.isfinite() & (values > 0)].float()
    if not values.numel():
        return 1.0
    wanted = 0.5 / values.quantile(0.99).item()
    decade = 10.0 ** math.floor(math.log10(wanted))
    return max(decade * max(step for step in (1, 2, 5) if step * decade <= wanted), 1.0)


def side_by_side(result: Reconstruction, note: str = "") -> Iterator[Tensor]:
    """Frames of the side-by-side video, one by one.

    Args:
        result: Both reconstructions.
        note: A line below the panels; none if empty.

    Yields:
        (H, W, 3), uint8; the four panels with a caption each, in a row or two by two; H and W are even.

    Raises:
        MissingPackage: If Pillow or matplotlib (whose font is used) is not installed.
    """
    reference, swapped = result.sides["reference"], result.sides["swapped"]
    difference = (swapped.frames - reference.frames).abs()
    factor = amplification(difference)
    scale = max(math.ceil(_MIN_PANEL_WIDTH / result.clip.shape[-1]), 1)
    for index in range(len(result.clip)):
        largest = result.difference[index]
        panels = [
            (result.clip[index], f"clip, frame {index + 1} of {len(result.clip)}"),
            (reference.frames[index], f"reference, {_decibel(reference.psnr[index])}"),
            (swapped.frames[index], f"swapped, {_decibel(swapped.psnr[index])}"),
            (difference[index] * factor, _difference_caption(largest, result.largest_difference, factor)),
        ]
        yield _arrange([_panel(_to_bytes(picture), scale, caption) for picture, caption in panels], note)


def pair_side_by_side(
    clip: Tensor, reconstruction: Tensor, index: int, psnr: float, note: str = ""
) -> Tensor:
    """One frame of a clip beside its reconstruction.

    Args:
        clip: (3, H, W), pixels in [0, 1].
        reconstruction: The same shape; clamped to [0, 1].
        index: Of the frame, from 0, for the caption.
        psnr: Of the reconstruction, in dB.
        note: A line below the panels; none if empty.

    Returns:
        (H', W', 3), uint8; H' and W' are even.

    Raises:
        MissingPackage: As `side_by_side`.
    """
    scale = max(math.ceil(_MIN_PANEL_WIDTH / clip.shape[-1]), 1)
    panels = [(clip, f"clip, frame {index + 1}"), (reconstruction, f"swapped, {_decibel(psnr)}")]
    return _arrange([_panel(_to_bytes(picture), scale, caption) for picture, caption in panels], note)


def _decibel(value: float) -> str:
    return "PSNR ∞" if math.isinf(value) else f"PSNR {value:.2f} dB"


def _difference_caption(largest: float, of_all: float, factor: float) -> str:
    if of_all == 0:
        return "difference: none, bit for bit"
    return f"difference × {factor:,.0f}, largest {largest:.1e}"


def _to_bytes(picture: Tensor) -> Tensor:
    """(3, H, W) with pixels in [0, 1] to (H, W, 3), uint8; NaN becomes black."""
    return (picture.nan_to_num(0, 1, 0).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)


def _panel(picture: Tensor, scale: int, caption: str) -> Tensor:
    """The picture, each pixel repeated `scale` times in both directions, with a bar of text above it."""
    picture = picture.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    return torch.cat([_text_bar(caption, picture.shape[1]), picture])


def _arrange(panels: list[Tensor], note: str) -> Tensor:
    height, width = panels[0].shape[:2]
    columns = len(panels) if len(panels) * (width + _GAP) <= _MAX_ROW_WIDTH else 2
    rows = len(panels) // columns
    total_width = columns * width + (columns + 1) * _GAP
    total_height = rows * (height + _GAP) + _GAP + (_BAR_HEIGHT if note else 0)
    total_height, total_width = total_height + total_height % 2, total_width + total_width % 2
    canvas = torch.full((total_height, total_width, 3), _BACKGROUND, dtype=torch.uint8)
    for index, panel in enumerate(panels):
        top = (index // columns) * (height + _GAP)
        left = _GAP + (index % columns) * (width + _GAP)
        canvas[top : top + height, left : left + width] = panel
    if note:
        top = rows * (height + _GAP)
        canvas[top : top + _BAR_HEIGHT, _GAP : total_width - _GAP] = _text_bar(note, total_width - 2 * _GAP)
    return canvas


def _text_bar(text: str, width: int) -> Tensor:
    """(_BAR_HEIGHT, width, 3), uint8; the text is made smaller until it fits."""
    image_module = require("PIL.Image", "the side-by-side video")
    draw_module = require("PIL.ImageDraw", "the side-by-side video")
    image = image_module.new("RGB", (width, _BAR_HEIGHT), (_BACKGROUND,) * 3)
    draw = draw_module.Draw(image)
    size = _FONT_SIZE
    while size > 8 and draw.textlength(text, font=_font(size)) > width - 4:
        size -= 1
    draw.text((2, _BAR_HEIGHT // 2), text, font=_font(size), fill=_FOREGROUND, anchor="lm")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(_BAR_HEIGHT, width, 3)


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    font_manager = require("matplotlib.font_manager", "the side-by-side video")
    font_module = require("PIL.ImageFont", "the side-by-side video")
    return font_module.truetype(font_manager.findfont("DejaVu Sans"), size)
