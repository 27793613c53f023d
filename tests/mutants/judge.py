"""Runs tests against a mutant, and tells whether one of them saw it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from . import choose
from .find import Gone, module_of
from .scratch import BASE, BuildFailed, Scratch, Worker

# pytest's options for a suite.
SUITES: dict[str, list[str]] = {"old": ["-m", ""], "all": ["-m", ""], "quick": []}
_START = 240  # seconds until the first test runs, on a busy machine
_HANGS = 60  # seconds without a new test, at least
_SLOWER = 20  # times as long as predicted is a hang, too


def _text(folder: Path, name: str) -> str:
    file = folder / name
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


def run_pytest(
    scratch: Scratch, batch: choose.Batch, options: list[str], report: Path, most: float = math.inf
) -> int | str:
    """Run a batch; return pytest's exit code, or "hung", or "cut" after `most` seconds."""
    shutil.rmtree(report, ignore_errors=True)
    report.mkdir(parents=True)
    environment = scratch.environment() | {"MUTANTS_REPORT": str(report)}
    if batch.tests is not None:
        (report / "order").write_text("\n".join(batch.tests), encoding="utf-8")
        environment["MUTANTS_ORDER"] = str(report / "order")
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", *options]
    arguments += [f"--deselect={test}" for test in choose.failing()]
    arguments += ["-p", "tests.mutants.select_tests", *batch.files]
    job = {
        "tree": str(scratch.tree),
        "report": str(report),
        "environment": environment,
        "arguments": arguments,
    }
    print(json.dumps(job), file=scratch.server.stdin, flush=True)
    patience = max(_HANGS, _SLOWER * batch.slowest) if batch.slowest is not None else 600
    current = report / "current"
    while not (report / "code").exists():
        if scratch.server.poll() is not None:
            raise RuntimeError("the process that runs pytest ended: " + _text(report, "output")[-1000:])
        time.sleep(0.1)
        if not (pid := _text(report, "pid")):  # the server still imports
            continue
        begun = (report / "pid").stat().st_mtime
        running = current.exists()
        quiet = time.time() - (current.stat().st_mtime if running else begun)
        if (hung := quiet > (patience if running else _START)) or time.time() - begun > most:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)
            while not (report / "code").exists():
                time.sleep(0.1)
            return "hung" if hung else "cut"
    return int(_text(report, "code"))


def _verdict(worker: Worker, code: int | str, report: Path, module: str | None) -> tuple[str, str]:
    """Return what a run of pytest says, and by which test."""
    if code in (0, 5):  # 5: nothing was left to run
        return "survived", ""
    if code == "hung":
        return "timeout", _text(report, "current")
    if code == "cut":
        return "undecided", ""
    if failed := _text(report, "failed"):
        return "killed", failed.splitlines()[0]
    if code < 0 or code > 5:
        return "killed", f"{_text(report, 'current')} (the process ended with {code})"
    imported = module is None or worker.python(f"import causalvae_kernels.{module}").returncode == 0
    return ("killed" if imported else "invalid"), _text(report, "not_collected") or "pytest itself"


def judge(
    worker: Worker, mutant: dict[str, Any], suite: str, isa: str, first: float, limit: float
) -> dict[str, Any]:
    """Return the verdict on a mutant."""
    begun = time.time()
    report = worker.tree.parent / "report"

    def say(verdict: str, by: str = "", tests: str = "") -> dict[str, Any]:
        return {"verdict": verdict, "by": by, "tests": tests, "seconds": round(time.time() - begun, 1)}

    try:
        path, _ = worker.make(mutant)
    except Gone as gone:
        return say("gone", str(gone))
    except BuildFailed:
        worker.undo(choose.locate(BASE.tree, mutant)[0])
        return say("invalid", "the compiler refuses it")
    try:
        module = (
            module_of(path, "python").removesuffix(".__init__") if mutant["language"] == "python" else None
        )
        mapped = choose.coverage() is not None
        batches, tests = choose.batches(BASE.tree, mutant, isa, first, limit)
        for batch in batches:
            left = math.inf if mapped else limit - (time.time() - begun)
            code = run_pytest(worker, batch, ["-x", *SUITES[suite]], report, left)
            verdict, by = _verdict(worker, code, report, module)
            if verdict != "survived":
                return say(verdict, by, tests)
        return say("survived" if mapped else "undecided", "" if batches else "no test runs this line", tests)
    finally:
        worker.undo(path)


def failing_without_mutant(tests: list[str], suite: str) -> set[str]:
    """Return which of the tests fail on the unchanged tree: what they say of mutants counts for nothing."""
    files = tuple(dict.fromkeys(test.partition("::")[0] for test in tests))
    batch = choose.Batch(files, tuple(tests), None, None)
    report = BASE.tree.parent / "report"
    run_pytest(BASE, batch, SUITES[suite], report)
    BASE.close()
    return set(_text(report, "failed").splitlines())
