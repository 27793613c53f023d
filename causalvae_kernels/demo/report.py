"""The reconstruction as JSON, with everything that is needed to read the numbers later."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .reconstruction import Reconstruction, Side


@dataclass(frozen=True)
class Setting:
    """What was run where.

    Attributes:
        clip: Name of the clip.
        start: Index of the first frame of the clip.
        width: Pixels.
        height: Pixels.
        fps: Frames per second of the clip.
        model: Label of the VAE and its weights.
        note: A sentence to read before looking at the pictures; empty if there is none.
        dtype: Of the parameters and activations.
        device: Where it ran, in words.
        threads: Of the CPU.
        backend: As asked for; "auto" by default.
        precision: As asked for; the default tier's name otherwise.
        versions: Package to version.
    """

    clip: str
    start: int
    width: int
    height: int
    fps: float
    model: str
    note: str
    dtype: str
    device: str
    threads: int
    backend: str
    precision: str
    versions: dict[str, str]


def report_dict(result: Reconstruction, setting: Setting) -> dict[str, Any]:
    """The report, ready for ``json.dumps``.

    Numbers that JSON does not know, such as the infinite PSNR of no error, are null. Pixels are in
    [0, 1], PSNR in dB, times in milliseconds, memory in bytes.
    """
    return finite_or_null(
        {
            "setting": asdict(setting),
            "num_frames": result.num_frames,
            "num_frames_out": result.num_frames_out,
            "num_frames_compared": len(result.clip),
            "swap": result.swap_summary,
            "warnings": result.warnings,
            "largest_difference": result.largest_difference,
            "largest_latent_difference": result.latent_difference,
            "difference_per_frame": result.difference,
            "any_mse_per_frame": result.adapted,
            **{name: _side_dict(side) for name, side in result.sides.items()},
        }
    )


def _side_dict(side: Side) -> dict[str, Any]:
    return {
        "mse": sum(side.mse) / len(side.mse),
        "mse_per_frame": side.mse,
        "psnr_per_frame": side.psnr,
        "encode": side.encode.as_dict(),
        "decode": side.decode.as_dict(),
        "peak_bytes": side.peak_bytes,
    }


def finite_or_null(value: Any) -> Any:
    """The same nested data with None for every number that JSON does not know (infinite, NaN)."""
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
