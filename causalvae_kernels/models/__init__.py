"""The swap into diffusers' VAEs: `swap.py` is the mechanism, and every family has a file of rules."""

from . import cogvideox, generic, kvae, magvit  # noqa: F401  (register their rules)
from .swap import FAMILIES, ReportEntry, Swap, restore, swap

__all__ = ["FAMILIES", "ReportEntry", "Swap", "restore", "swap"]
