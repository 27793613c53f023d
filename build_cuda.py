"""The CUDA module's build: the tools it needs, the ninja file, and the back end that asks pip for CUTLASS.

Where there is no `nvcc`, nothing here asks for anything: the package installs as if it had no CUDA module.
"""

from __future__ import annotations

import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks that stay as setuptools has them

ROOT = Path(__file__).resolve().parent
# Headers of CUTLASS 4: the CollectiveBuilder of the epilogue and the im2col main loop for sm_90a.
CUTLASS = "nvidia-cutlass>=4.2,<5"
DEFAULT_ARCHS = "80;90a"
# Where NVIDIA's installers put it; they leave the path alone.
USUAL_NVCC = "/usr/local/cuda/bin/nvcc"
# Without NDEBUG the assertions inside CUTLASS's kernels are function calls, and ptxas then waits for every
# tensor-core instruction (C7510).
FLAGS = "-O3 -std=c++17 -DNDEBUG --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden"
MODULE = ["csrc/module_cuda.cpp", "csrc/bindings_cuda.cpp"]
# Those that take longest come first: about a minute of a core each for sm_90a, seconds for the others.
FOLDERS = (
    "csrc/cuda/sm90/*.cu",
    "csrc/cuda/sm80/*.cu",
    "csrc/cuda/*.cu",
    "csrc/cuda/host/*.cpp",
    "csrc/common/*.cpp",
)
SOURCES = [
    path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in sorted(ROOT.glob(folder))
] + MODULE


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Add CUTLASS's headers to what a build needs, where there is an nvcc to read them."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requires()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Like `get_requires_for_build_wheel`."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requires()]


def _requires() -> list[str]:
    return [CUTLASS] if is_wanted() and find_cutlass() is None else []


def is_wanted() -> bool:
    """Tell whether to try: there is an nvcc, architectures are asked for, and a build is not forbidden."""
    skipped = os.getenv("CAUSALVAE_KERNELS_SKIP_BUILD", "0") not in ("", "0")
    return os.name == "posix" and not skipped and bool(_archs()) and find_nvcc() is not None


def _archs() -> list[str]:
    """Return the architectures asked for, as nvcc numbers them: ["80", "90a"]; none for "none"."""
    listed = os.getenv("CAUSALVAE_KERNELS_CUDA_ARCH_LIST", "") or DEFAULT_ARCHS
    return [] if listed.strip().lower() == "none" else re.split(r"[;,\s]+", listed.strip())


def find_nvcc() -> str | None:
    """Return CUDACXX, or the nvcc of CUDA_HOME, or the one on the path, or that of /usr/local/cuda."""
    if named := os.getenv("CUDACXX"):
        return named
    homes = (os.getenv(name) for name in ("CUDA_HOME", "CUDA_PATH"))
    of_homes = (f"{home}/bin/nvcc" for home in homes if home)
    return next((nvcc for name in (*of_homes, "nvcc", USUAL_NVCC) if (nvcc := shutil.which(name))), None)


def find_cutlass() -> list[Path] | None:
    """Return the folders of CUTLASS's headers, or None; nothing of its Python package is imported."""
    spec = find_spec("cutlass_library")
    for location in (spec.submodule_search_locations or []) if spec else []:
        folders = [Path(location, "source", folder) for folder in ("include", "tools/util/include")]
        if all(folder.is_dir() for folder in folders):
            return folders
    return None


def ninja_file(cxx: str, target: str, folder: Path) -> str:
    """Write out the build: a unit per tile of the convolution, each for the GPUs that it is written for.

    Args:
        cxx: The C++ compiler.
        target: Name of the module's file.
        folder: Where ninja will run; links to the headers are made there.

    Raises:
        OSError: Something is missing, as a sentence.
    """
    import pybind11

    nvcc, cutlass, archs = find_nvcc(), find_cutlass(), _archs()
    if nvcc is None or shutil.which(nvcc) is None:
        raise OSError(f"nvcc cannot be run: {nvcc or 'none is on the path'}")
    if cutlass is None:
        raise OSError(f"CUTLASS's headers are missing: pip install '{CUTLASS}'")
    if unknown := [arch for arch in archs if not re.fullmatch(r"\d{2,3}[af]?", arch)]:
        raise OSError(
            f"CAUSALVAE_KERNELS_CUDA_ARCH_LIST holds {unknown[0]!r}, expected numbers like {DEFAULT_ARCHS!r}"
        )
    launcher = "ccache " if shutil.which("ccache") else ""
    includes = [*cutlass, pybind11.get_include(), get_path("include"), get_path("platinclude")]
    found = " ".join(
        f"-isystem {_link(folder, n, i)}" for n, i in enumerate(dict.fromkeys(map(str, includes)))
    )
    # sm_80 code runs on all of Ampere and Ada; wgmma and TMA's im2col are sm_90a's alone.
    kinds = {
        "csrc/cuda": archs,
        "csrc/cuda/sm80": [arch for arch in archs if arch.startswith("8") and len(arch) == 2],
        "csrc/cuda/sm90": [arch for arch in archs if arch == "90a"],
    }
    have = " ".join(f"-DCVK_HAVE_{kind[-4:].upper()}" for kind in list(kinds)[1:] if kinds[kind])
    lines = [
        "rule cxx",
        f"  command = {launcher}{cxx} -O3 -std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra"
        f" {found} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule nvcc",
        f"  command = {launcher}{nvcc} {FLAGS} {found} $flags -MMD -MF $out.d -MT $out -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        # torch brings a CUDA runtime of its own: none of ours may be seen outside.
        f"  command = {nvcc} -shared -cudart static {_code(archs)} -Xlinker --exclude-libs,ALL $in -o $out",
    ]
    objects = []
    for source in SOURCES:
        kind = str(Path(source).parent)
        if not kinds.get(kind, [""]):
            continue
        built = source.replace("/", ".") + ".o"
        flags = _code(kinds.get(kind, []))
        if kind == "csrc/cuda" or source == MODULE[0]:
            flags = f"""{flags} {have} '-DCVK_CUDA_ARCHS="{";".join(archs)}"'"""
        # The module's own unit sees CUDA's headers, and nvcc knows where they are.
        rule = "nvcc" if source.endswith(".cu") or source == MODULE[0] else "cxx"
        lines.append(f"build {built}: {rule} {_path(str(ROOT / source))}\n  flags = {flags.strip()}")
        objects.append(built)
    return "\n".join([*lines, f"build {_path(target)}: link {' '.join(objects)}", ""])


def _code(archs: list[str]) -> str:
    return " ".join(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs)


def _link(folder: Path, number: int, target: str) -> str:
    """Make a link to headers; return its name.

    pip unpacks them into another folder each time: with that in it every command would be a new one to ninja
    and to ccache, and minutes of compiling would be done again.
    """
    link = folder / f"headers{number}"
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link.name


def _path(text: str) -> str:
    return re.sub(r"([$ :])", r"$\1", text)
