"""Measuring time and memory of interchangeable pieces of code.

``timing`` measures several providers in alternation; ``memory`` measures the peak of allocated tensors.
"""

from .memory import peak_allocated
from .timing import Timing, time_providers

__all__ = ["Timing", "peak_allocated", "time_providers"]
