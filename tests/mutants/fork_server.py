"""Runs pytest in forks of a process that has imported the heavy packages: seconds less for every mutant.

A script of its own: nothing of a tree is imported before the fork. Each line of its input is a job in JSON,
with tree, report (a folder), environment and arguments. The report gets `pid`, `output` and at last `code`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

HEAVY = (
    *("torch", "torch._dynamo", "numpy", "pytest", "hypothesis", "typer", "diffusers"),
    *(
        f"diffusers.models.autoencoders.autoencoder_kl_{name}"
        for name in ("cogvideox", "wan", "ltx", "mochi")
    ),
    *(
        f"diffusers.models.autoencoders.autoencoder_kl_{name}"
        for name in ("hunyuan_video", "cosmos", "magvit")
    ),
)


def _child(job: dict) -> None:
    """Become pytest."""
    os.setsid()
    output = os.open(Path(job["report"], "output"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["tree"])
    sys.path[0] = job["tree"]
    sys.argv = ["pytest", *job["arguments"]]
    code = int(importlib.import_module("pytest").main(job["arguments"]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Run job after job, until the input ends."""
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    for line in sys.stdin:
        job = json.loads(line)
        if (pid := os.fork()) == 0:
            try:
                _child(job)
            finally:
                os._exit(3)  # pytest's internal error
        Path(job["report"], "pid").write_text(str(pid))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        partial = Path(job["report"], "code.partial")
        partial.write_text(str(code))
        partial.rename(Path(job["report"], "code"))


if __name__ == "__main__":
    main()
