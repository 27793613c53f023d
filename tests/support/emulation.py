"""The host emulation of the CUDA kernels, `_C_emulation`: built for the tests, never shipped.

`python -m tests.support.emulation` builds it into build/emulation, in a folder named after the sources'
checksum; `make test` does so before its processes start. A test that needs it is skipped, with that command,
where it was not built from the sources that are here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from sysconfig import get_config_var, get_path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m tests.support.emulation"
_NAME = "_C_emulation"
_SOURCES = (
    "csrc/bindings.h",
    "csrc/bindings_cuda.*",
    "csrc/common/*",
    "csrc/cuda/host/*",
    "csrc/emulation/*",
)
# As setup.py compiles the modules that are shipped.
_FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra"
_LINK = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"


def load() -> ModuleType:
    """Return the module; where it is not built, skip the test or the file of tests that asks for it."""
    path = _path()
    if not path.exists():
        pytest.skip(
            f"the host emulation was not built from these sources: {COMMAND}", allow_module_level=True
        )
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(_NAME, path)
        sys.modules[_NAME] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[_NAME]


def build() -> Path:
    """Compile the module unless it is there; return its file.

    Raises:
        OSError: There is no C++ compiler.
        subprocess.CalledProcessError: The compiler failed; its messages went to stderr.
    """
    path = _path()
    if path.exists():
        return path
    import pybind11

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{os.getpid()}.{path.name}")
    includes = dict.fromkeys([pybind11.get_include(), get_path("include"), get_path("platinclude")])
    command = [*_compiler(), *shlex.split(f"{_FLAGS} {_LINK}"), *shlex.split(os.getenv("CXXFLAGS", ""))]
    command += [option for folder in includes for option in ("-isystem", folder)]
    command += [str(source) for source in _sources() if source.suffix == ".cpp"]
    subprocess.run([*command, "-o", str(unfinished)], check=True)
    return unfinished.replace(path)


def _path() -> Path:
    digest = hashlib.sha256(f"{sys.version} {_FLAGS}".encode())
    for source in _sources():
        digest.update(source.read_bytes())
    return ROOT / "build/emulation" / digest.hexdigest()[:16] / f"{_NAME}{get_config_var('EXT_SUFFIX')}"


def _sources() -> list[Path]:
    return sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern))


def _compiler() -> list[str]:
    named = os.getenv("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if named is None:
        raise OSError("the host emulation needs a C++17 compiler: install g++ or clang, or name one in CXX")
    return shlex.split(named)


if __name__ == "__main__":
    print(build())
