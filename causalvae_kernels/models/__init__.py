"""The swap into diffusers' VAEs: `swap.py` is the mechanism, and every family has a file of rules."""

from . import (  # noqa: F401  (each registers its families)
    cogvideox,
    cosmos,
    hunyuanvideo,
    hunyuanvideo15,
    ltx,
    mochi,
)
from .swap import FAMILIES, ReportEntry, Swap, restore, swap

__all__ = ["FAMILIES", "ReportEntry", "Swap", "restore", "swap"]
