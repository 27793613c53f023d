"""Measuring time and memory of interchangeable pieces of code.

``timing`` measures several providers in alternation; ``providers`` and ``module_providers`` are diffusers'
modules and ours; ``roofline`` is what the machine can do at most; ``record`` is what is kept, with
``machine``'s facts, and ``plot`` draws it; ``memory`` measures the peak of allocated tensors, ``shares``
where the time of a model goes; ``traffic`` counts the bytes that it moves, in a ``hollow_run``.
"""

from .memory import peak_allocated
from .timing import Timing, time_providers

__all__ = ["Timing", "peak_allocated", "time_providers"]
