"""A coder as data: what an encoder or decoder computes as steps, their memory planned, run again and again.

`steps.py` records what the modules of a family would compute; `build.py` chooses backends and who overwrites
whom; `arena.py` places what lives at the same time side by side; `schedule.py` runs the steps; `watch.py`
tells whether the modules are still what was read.
"""

from .arena import Arena
from .build import build
from .schedule import Mismatch, Schedule
from .steps import CallStep, KeepStep, OpStep, State, Steps, Unreadable, Value, View, Weight
from .watch import Watch

__all__ = [
    "Arena",
    "CallStep",
    "KeepStep",
    "Mismatch",
    "OpStep",
    "Schedule",
    "State",
    "Steps",
    "Unreadable",
    "Value",
    "View",
    "Watch",
    "Weight",
    "build",
]
