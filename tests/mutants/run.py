"""Replays the list: makes each mutant in a copy of the tree, and runs the tests that can see it.

`python -m tests.mutants.run [--suite …] [--only ID…]`; with `--map` it measures which test runs which line.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
from typing import Any

from . import choose
from .judge import SUITES, failing_without_mutant, judge
from .results import read, write
from .scratch import BASE, Worker, best_isa, prepare_base

_lock = threading.Lock()


def record(name: str, suite: str, verdict: dict[str, Any] | None) -> None:
    """Write a verdict into the list, which may have been edited meanwhile; None takes it out."""
    with _lock:
        mutants = read()
        for mutant in mutants:
            if mutant["id"] == name:
                mutant["verdicts"].pop(suite, None)
                if verdict is not None:
                    mutant["verdicts"][suite] = verdict
        write(mutants)


def make_map(jobs: int, suite: str) -> None:
    """Run the suite once under coverage, with a context for each test."""
    prepare_base(build=False)
    shutil.rmtree(choose.MAP, ignore_errors=True)
    choose.MAP.mkdir(parents=True)
    settings = choose.MAP / "coveragerc"
    settings.write_text("[run]\nrelative_files = true\nsource = causalvae_kernels\n", encoding="utf-8")
    data = choose.MAP / "partial.sqlite"
    environment = BASE.environment() | {"COVERAGE_FILE": str(data), "MUTANTS_REPORT": str(choose.MAP)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        str(jobs),
        "--cov",
        "--cov-context=test",
        "--cov-report=",
    ]
    command += [f"--cov-config={settings}", "-p", "tests.mutants.select_tests", *SUITES[suite], "tests"]
    subprocess.run([*command, "--ignore=tests/aot", "--ignore=tests/gpu"], cwd=BASE.tree, env=environment)
    shutil.copytree(BASE.tree / "causalvae_kernels", choose.MAP / "tree" / "causalvae_kernels")
    os.replace(data, choose.MAP / "coverage.sqlite")


def replay(mutants: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Judge mutants, two at a time, each verdict written at once."""
    compiled = any(mutant["language"] == "c++" for mutant in mutants)
    prepare_base(build=compiled)
    isa = best_isa() if compiled else ""
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    # In an order by chance, an interrupted replay is a fair sample.
    for mutant in random.Random(0).sample(mutants, len(mutants)):
        waiting.put(mutant)

    def work(number: int) -> None:
        worker = Worker(number)
        while True:
            try:
                mutant = waiting.get_nowait()
            except queue.Empty:
                return worker.close()
            verdict = judge(worker, mutant, options.suite, isa, options.first_seconds, options.limit_seconds)
            record(mutant["id"], options.suite, verdict)
            left = waiting.qsize()
            print(
                f"{mutant['id']:16} {verdict['verdict']:9} {verdict['seconds']:6.0f} s  {verdict['by']}  "
                f"({verdict['tests']} tests; {left} left)",
                flush=True,
            )

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, options.workers + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def control(ids: set[str], suite: str) -> None:
    """Take back what tests said that fail without a mutant, too, and ask them no more."""
    verdicts = {m["id"]: m["verdicts"].get(suite, {}) for m in read() if m["id"] in ids}
    killers = {
        name: v["by"] for name, v in verdicts.items() if v.get("verdict") == "killed" and "::" in v["by"]
    }
    killers = {name: by.partition(" (the process")[0] for name, by in killers.items()}
    failing = failing_without_mutant(sorted(set(killers.values())), suite) if killers else set()
    for test in failing:
        print(f"{test} fails without a mutant, too")
    choose.FAILING.write_text("\n".join(sorted(choose.failing() | failing)), encoding="utf-8")
    for name, by in killers.items():
        if by in failing:
            record(name, suite, None)


def summary(mutants: list[dict[str, Any]], suite: str) -> int:
    """Print what was killed and what survived; return how many survivors nobody has explained."""
    verdicts = {m["id"]: m["verdicts"].get(suite, {}).get("verdict", "not judged") for m in mutants}
    for name in ("not judged", "undecided", "gone", "invalid"):
        if found := [m for m, verdict in verdicts.items() if verdict == name]:
            print(f"{name}: {' '.join(found)}")
    survivors = [m for m in mutants if verdicts[m["id"]] == "survived"]
    for mutant in survivors:
        print(
            f"\n{mutant['id']}  {mutant['module']}:{mutant['function']}  {mutant['note'] or 'NOT EXPLAINED'}"
        )
        print(f"  - {mutant['before']}\n  + {mutant['after']}")
    killed = sum(verdict in ("killed", "timeout") for verdict in verdicts.values())
    print(f"\nkilled {killed} of {killed + len(survivors)}")
    return sum(not mutant["note"].startswith("equivalent") for mutant in survivors)


def main() -> int:
    """Replay the list, or make the map."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--suite", choices=SUITES, default="all", help="which tests judge; the verdict's name"
    )
    parser.add_argument("--only", nargs="+", metavar="ID", help="mutants, or beginnings of their ids")
    parser.add_argument("--again", action="store_true", help="also those that have a verdict")
    parser.add_argument("--map", action="store_true", help="measure which test runs which line, and stop")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--first-seconds", type=float, default=60, help="of tests, in the first process")
    parser.add_argument(
        "--limit-seconds", type=float, default=600, help="of tests, for one mutant; without a map, of a clock"
    )
    options = parser.parse_args()
    if options.map:
        make_map(options.workers, options.suite)
        return 0
    chosen = [m for m in read() if not options.only or m["id"].startswith(tuple(options.only))]
    open_ones = (None, "undecided") if choose.coverage() else (None,)

    def is_open(mutant: dict[str, Any]) -> bool:
        return mutant["verdicts"].get(options.suite, {}).get("verdict") in open_ones

    waiting = [m for m in chosen if options.again or is_open(m)]
    ids = {m["id"] for m in chosen}
    while waiting:
        replay(waiting, options)
        control(ids, options.suite)  # those of an interrupted run as well
        waiting = [m for m in read() if m["id"] in ids and is_open(m)]
    return min(summary([m for m in read() if m["id"] in ids], options.suite), 1)


if __name__ == "__main__":
    sys.exit(main())
