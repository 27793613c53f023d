"""What the families are called: one vocabulary for everybody who takes or lists names."""

from __future__ import annotations

from ..core.errors import InvalidInput
from ..temporal.frame_rule import class_named, short_name
from ..temporal.model_rules import FAMILIES as KNOWN
from .swap import FAMILIES


def families() -> list[str]:
    """Return the classes of diffusers that have rules or a frame rule, by name."""
    return sorted({*FAMILIES, *KNOWN})


def family_class(word: str) -> str:
    """Return the class that a word on the command line stands for: "wan", "AutoencoderKLWan".

    Raises:
        InvalidInput: It stands for none that is known.
    """
    found = class_named(word, families())
    if found is None:
        known = ", ".join(sorted(map(short_name, families())))
        raise InvalidInput(f"--family: got {word!r}, expected one of {known}, or the name of such a class")
    return found
