"""A pytest plugin: runs chosen tests in a chosen order, and reports to files, which outlive a crash.

The folder in MUTANTS_REPORT gets `current` (the test that is running), `failed` (the first one that failed),
`ran` (how many ended) and `durations.json`; MUTANTS_ORDER names a file with the tests' ids, one a line, and
without it all run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

_REPORT, _ORDER = os.environ.get("MUTANTS_REPORT"), os.environ.get("MUTANTS_ORDER")
_durations: dict[str, float] = {}


def _say(name: str, text: str) -> None:
    if _REPORT:
        Path(_REPORT, name).write_text(text, encoding="utf-8")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not in the list, and put the rest in its order."""
    if not _ORDER:
        return
    places = {name: n for n, name in enumerate(Path(_ORDER).read_text(encoding="utf-8").splitlines())}
    kept = [item for item in items if item.nodeid in places]
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in places])
    items[:] = sorted(kept, key=lambda item: places[item.nodeid])


def pytest_runtest_logstart(nodeid: str) -> None:
    """Say which test runs."""
    _say("current", nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    """Say which test failed, and how many ended."""
    _durations[report.nodeid] = _durations.get(report.nodeid, 0.0) + report.duration
    if report.failed and _REPORT:
        with Path(_REPORT, "failed").open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")
    if report.when == "teardown":
        _say("ran", str(len(_durations)))


def pytest_collectreport(report: Any) -> None:
    """Say which file could not be collected."""
    if report.failed:
        _say("not_collected", report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the durations; with pytest-xdist the process that hands out the tests has them all."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _say("durations.json", json.dumps(_durations))
