"""Seeds that come from a test's id, so that a run can be repeated bit for bit."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(test_id: str, run: int) -> int:
    """Return the seed of a test in a run: `--seed`, 0 unless given."""
    digest = hashlib.blake2s(f"{run} {test_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    try:
        import numpy
    except ImportError:
        return
    numpy.random.seed(seed % 2**32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed of its own inside of `with`; the generator goes on as if nothing had been drawn.

    For what is built once and kept: else the first test that asks for it would draw other numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
