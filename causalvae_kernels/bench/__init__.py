"""Measuring time and memory of interchangeable pieces of code.

``timing`` measures several providers in alternation; ``providers`` are diffusers' modules and ours;
``roofline`` is what the machine can do at most; ``record`` is what is kept, with ``machine``'s facts, and
``plot`` draws it; ``memory`` measures the peak of allocated tensors.
"""

from .memory import peak_allocated
from .timing import Timing, time_providers

__all__ = ["Timing", "peak_allocated", "time_providers"]
