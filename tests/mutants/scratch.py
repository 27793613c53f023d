"""Copies of the tree in which mutants are made: the checkout itself is never changed.

build/mutants/base holds an unchanged copy and its build of the CPU module; each worker has a copy of its own.
All paths of the build are relative, so that a worker's C++ mutant starts from the objects of base, and
compiles what its change concerns, for one instruction set.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .find import ROOT, changed

WORK = ROOT / "build" / "mutants"
_IGNORED = shutil.ignore_patterns(
    *"build dist .git .venv .hypothesis .benchmarks .*_cache __pycache__ *.egg-info *.partial".split(),
    "mutants.json",  # with its test: of a tree with a mutant it says that the line is gone
    "test_mutants.py",
)


class BuildFailed(RuntimeError):
    """A mutant that the compiler refuses."""


def _files(folder: Path) -> set[str]:
    found = set()
    for place, folders, names in os.walk(folder):
        ignored = _IGNORED(place, [*folders, *names])
        folders[:] = [name for name in folders if name not in ignored]
        found |= {os.path.relpath(os.path.join(place, name), folder) for name in names if name not in ignored}
    return found


def _sync(source: Path, target: Path) -> None:
    """Make a folder like another, times included."""
    wanted = _files(source)
    for name in _files(target) - wanted if target.exists() else ():
        (target / name).unlink()
    for name in wanted:
        old, new = target / name, source / name
        if old.exists() and old.stat().st_mtime_ns == new.stat().st_mtime_ns:
            continue
        old.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(new, old)


class Scratch:
    """A copy of the tree, with its own build of the CPU module."""

    def __init__(self, name: str) -> None:
        self.tree, self.cpp = WORK / name / "tree", WORK / name / "cpp"

    def environment(self, paths: bool = True) -> dict[str, str]:
        """Return the environment in which Python finds this copy of the package, and uses one thread."""
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return os.environ | threads | {"PYTHONPATH": str(self.tree) if paths else ""}

    @functools.cached_property
    def server(self) -> subprocess.Popen[str]:
        """Start what runs pytest for this copy: fork_server.py."""
        script = Path(__file__).with_name("fork_server.py")
        return subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, text=True, env=self.environment(paths=False)
        )

    def close(self) -> None:
        """End it; a later job starts a new one."""
        if "server" in self.__dict__:
            self.server.stdin.close()
            self.server.wait()
            del self.server

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run code against this copy."""
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=self.tree, env=self.environment(), capture_output=True, text=True, timeout=300
        )

    def ninja(self, file: str, jobs: int) -> None:
        """Build the CPU module, and put it into this copy of the package."""
        command = [sys.executable, "-m", "ninja", "-C", str(self.cpp), "-f", file, "-j", str(jobs)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildFailed(done.stdout[-2000:])
        for built in self.cpp.glob("_C_cpu*.so"):
            target = self.tree / "causalvae_kernels" / built.name
            target.unlink(missing_ok=True)  # a process may still have the old one mapped
            shutil.copy2(built, target)


BASE = Scratch("base")

# setup.py writes the ninja file; what it does besides needs an argument that builds nothing.
_WRITE = """
import runpy, sys, sysconfig
from pathlib import Path
sys.argv = ["setup.py", "--name"]
setup = runpy.run_path("setup.py")
target = "_C_cpu" + sysconfig.get_config_var("EXT_SUFFIX")
text = setup["cpu_ninja_file"](setup["find_compiler"](), target, Path(sys.path[0]))
Path("../cpp/build.ninja").write_text(text.replace(str(setup["ROOT"]), "../tree"))
"""
_BEST = "from causalvae_kernels.core import native; print(native.cpu_module().supported_isas()[0])"


def best_isa() -> str:
    """Return the instruction set for which C++ mutants are compiled: the best one of this processor."""
    return BASE.python(_BEST).stdout.strip()


def prepare_base(build: bool) -> None:
    """Bring base up to date with the checkout; build the CPU module where C++ mutants will be made."""
    _sync(ROOT, BASE.tree)
    if not build:
        return
    BASE.cpp.mkdir(exist_ok=True)
    done = BASE.python(_WRITE)
    if done.returncode != 0:
        raise BuildFailed(done.stderr)
    BASE.ninja("build.ninja", 2)
    kept, skip = [], False
    others = "|".join({"portable", "avx2", "avx512"} - {best_isa()})
    for line in (BASE.cpp / "build.ninja").read_text().splitlines():
        skip = bool(re.match(rf"build \S+\.({others})\.o:", line)) or (skip and line.startswith(" "))
        kept += [] if skip else [line]
    (BASE.cpp / "mutant.ninja").write_text("\n".join([*kept, ""]))


class Worker(Scratch):
    """A copy of base in which one mutant after the other is made."""

    def __init__(self, number: int) -> None:
        super().__init__(f"work{number}")
        _sync(BASE.tree, self.tree)

    def _forget_bytecode(self, path: str) -> None:
        file = self.tree / path
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            compiled.unlink()

    def make(self, mutant: dict[str, Any]) -> tuple[str, int]:
        """Make the mutant's change; return the file and the line.

        Raises:
            BuildFailed: The compiler refuses it.
            Gone: The tree has no such line.
        """
        path, number, text = changed(BASE.tree, mutant)
        (self.tree / path).write_text(text, encoding="utf-8")
        self._forget_bytecode(path)
        if mutant["language"] == "c++":
            shutil.rmtree(self.cpp, ignore_errors=True)
            shutil.copytree(BASE.cpp, self.cpp)
            self.ninja("mutant.ninja", 1)
        return path, number

    def undo(self, path: str) -> None:
        """Take the change back."""
        shutil.copy2(BASE.tree / path, self.tree / path)
        self._forget_bytecode(path)
        for module in (BASE.tree / "causalvae_kernels").glob("_C_cpu*.so"):
            target = self.tree / "causalvae_kernels" / module.name
            if target.stat().st_mtime_ns != module.stat().st_mtime_ns:
                target.unlink()
                shutil.copy2(module, target)
