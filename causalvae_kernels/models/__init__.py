"""The swap into diffusers' VAEs: `swap.py` is the mechanism, and every family has a file of rules."""

from . import (  # noqa: F401  (each registers its families)
    cogvideox,
    cosmos,
    hunyuanvideo,
    hunyuanvideo15,
    ltx,
    mochi,
    wan,
)
from .plan import MemoryPlan, plan_memory
from .swap import FAMILIES, ReportEntry, Swap, restore, swap

__all__ = ["FAMILIES", "MemoryPlan", "ReportEntry", "Swap", "plan_memory", "restore", "swap"]
