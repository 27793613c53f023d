"""The swap of the package's ops into diffusers' VAEs: `swap.py` the mechanism, one file of rules per family."""

from . import cogvideox  # noqa: F401  (registers the family)
from .swap import FAMILIES, ReportEntry, Swap, restore, swap

__all__ = ["FAMILIES", "ReportEntry", "Swap", "restore", "swap"]
