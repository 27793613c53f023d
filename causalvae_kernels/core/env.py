"""Every environment variable that the package reads, in one table."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import InvalidInput


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Attributes:
        name: Its name in the environment.
        meaning: One sentence for `causalvae-kernels info` and the README.
        default: What holds when it is unset or empty.
        choices: The allowed values; empty when any text is allowed.
        number: Whether the value must be a whole number.
    """

    name: str
    meaning: str
    default: str
    choices: tuple[str, ...] = ()
    number: bool = False

    def get(self) -> str | None:
        """Return the value, or None when unset or empty.

        Raises:
            InvalidInput: The value is none of `choices`, or no number.
        """
        if not _is_set(self.name):
            return None
        value = os.environ[self.name].strip()
        if not value:
            return None
        if self.choices and value not in self.choices:
            raise InvalidInput(
                f"environment variable {self.name}: got {value!r}, expected one of {', '.join(self.choices)}"
            )
        if self.number and not (value.isdecimal() and len(value) <= _MOST_DIGITS):
            shown = value if len(value) <= 2 * _MOST_DIGITS else f"{len(value)} characters"
            raise InvalidInput(
                f"environment variable {self.name}: got {shown!r}, expected a whole number of at most "
                f"{_MOST_DIGITS} digits"
            )
        return value


# More MiB than that many digits can write are more bytes than 64 bits can count.
_MOST_DIGITS = 12
PREFIX = "CAUSALVAE_KERNELS_"

# Asking os.environ costs 1.7 us, four times per call of an op; its own dictionary costs 0.1 us.
_ENTRIES = getattr(os.environ, "_data", None)
_KEY = getattr(os.environ, "encodekey", None)


def _is_set(name: str) -> bool:
    if _ENTRIES is None or _KEY is None:
        return name in os.environ
    return _KEY(name) in _ENTRIES


BACKEND = Variable(
    "CAUSALVAE_KERNELS_BACKEND",
    "Backend of every op that has it, unless an argument or use_backend() names another.",
    "auto",
    ("auto", "reference", "aten", "cpu", "triton", "cuda"),
)
PRECISION = Variable(
    "CAUSALVAE_KERNELS_PRECISION",
    "Precision tier, unless an argument or use_precision() names another.",
    "high",
    ("exact", "high"),
)
CPU_ISA = Variable(
    "CAUSALVAE_KERNELS_CPU_ISA",
    "Instruction set of the native CPU kernels, without AMX's tiles.",
    "the best that the processor has, and AMX",
    ("avx512", "avx2", "portable"),
)
PACKED_MIB = Variable(
    "CAUSALVAE_KERNELS_PACKED_MIB",
    "How many MiB the packed weights of the native kernels may take together.",
    "a quarter of the machine's memory",
    number=True,
)
MEMORY_MIB = Variable(
    "CAUSALVAE_KERNELS_MEMORY_MIB",
    'How many MiB an encode or decode may take before swap(tiling="auto") tiles it.',
    "what is free on the device",
    number=True,
)
CACHE = Variable(
    "CAUSALVAE_KERNELS_CACHE",
    "Folder for what `causalvae-kernels tune` measures.",
    "causalvae_kernels in the user's cache folder",
)
SKIP_BUILD = Variable(
    "CAUSALVAE_KERNELS_SKIP_BUILD",
    "Set to 1 while installing: no native module is built.",
    "0",
)
CUDA_ARCH_LIST = Variable(
    "CAUSALVAE_KERNELS_CUDA_ARCH_LIST",
    "GPUs for which the CUDA module is built while installing, as nvcc numbers them; none: it is not built.",
    "80;90a",
)

_DECIDE = tuple(v.name if _KEY is None else _KEY(v.name) for v in (BACKEND, PRECISION, CPU_ISA))


def state() -> tuple[object, ...]:
    """Return what the environment holds of the variables that decide how a call runs, unread."""
    entries = os.environ if _ENTRIES is None else _ENTRIES
    first, second, third = _DECIDE
    return (
        entries[first] if first in entries else None,
        entries[second] if second in entries else None,
        entries[third] if third in entries else None,
    )


TABLE: tuple[Variable, ...] = (
    BACKEND,
    PRECISION,
    CPU_ISA,
    PACKED_MIB,
    MEMORY_MIB,
    CACHE,
    SKIP_BUILD,
    CUDA_ARCH_LIST,
)
