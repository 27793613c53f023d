"""Data sets encoded in this process or by `torchrun`, and what lies in their folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from causalvae_kernels.cli import app

SHARDS = ("--clips-per-shard", "2")


def encode(*arguments: Any, code: int = 0) -> Any:
    """Run `encode` in this process, and require an exit code; .stdout and .stderr are what it said."""
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    result = runner.invoke(app, ["encode", *map(str, arguments)])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a data set by name, but for the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def torchrun(processes: int, *arguments: Any, code: str | None = None) -> subprocess.Popen[str]:
    """Start `encode` in several processes.

    Args:
        processes: How many.
        *arguments: Of `encode`.
        code: Python that runs before it in each process; the command follows.
    """
    program = [code or "", "from causalvae_kernels.cli import main", "main()"]
    script = Path(str(arguments[-1])).with_suffix(".py")
    script.write_text("\n".join(program))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += [
        "--master-port=0",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        str(script),
        "encode",
    ]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *map(str, arguments)], env=environment, text=True, **pipes)
