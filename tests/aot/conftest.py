"""Which compilations are quick: those for one architecture, of Triton's kernels."""

from __future__ import annotations

import pytest

# Of every feature that the tests look for, Hopper has one: TMA, wgmma, the largest shared memory.
QUICK = 90


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the other architectures to `make test-all`."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("capability", QUICK) != QUICK:
            item.add_marker("exhaustive")
