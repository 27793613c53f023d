"""Builds the native modules `causalvae_kernels._C_cpu` and `_C_cuda` with ninja; the rest: pyproject.toml."""

import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from sysconfig import get_config_var, get_path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

import build_cuda

if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"causalvae-kernels: setuptools {setuptools.__version__} does not know the license expression of "
        "pyproject.toml, 77 does: pip install 'setuptools>=77'"
    )

ROOT = Path(__file__).resolve().parent
MODULE = ["csrc/module_cpu.cpp", "csrc/bindings_norms.cpp"]
HOST, SIMD, TILES = (
    sorted(
        path.relative_to(ROOT).as_posix() for folder in folders for path in ROOT.glob(f"csrc/{folder}/*.cpp")
    )
    for folders in (("common", "cpu"), ("cpu/simd",), ("cpu/tiles",))
)
ISA_FLAGS = {
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512",
}
AMX_FLAGS = f"{ISA_FLAGS['avx512']} -mamx-tile -mamx-bf16"
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra"
LINK = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
NOT_BUILT = {
    "_C_cpu": "causalvae-kernels: the native CPU module was not built ({}); the package works without it, on "
    "the backends reference and aten; for the backend cpu, name a C++17 compiler in CXX and install again.",
    "_C_cuda": "causalvae-kernels: the CUDA module was not built ({}); the package works without it; for the "
    "backend cuda, see to that and install it again, or set CAUSALVAE_KERNELS_CUDA_ARCH_LIST=none.",
}


def accepts(cxx: str, flags: str) -> bool:
    """Tell whether the compiler makes a library of a C++ source with these flags."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <vector>\nint probe() { return int(std::vector<int>(1).size()); }\n")
        command = [*shlex.split(f"{cxx} {flags} {LINK}"), str(source), "-o", f"{source}.so"]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            return False


def find_compiler() -> str:
    """Return CXX, or the C++ side of CC, or else the first of the usual ones that compiles C++17."""
    plus = {"clang": "clang++", "gcc": "g++", "cc": "c++"}
    of_cc = re.sub(r"\b(clang|gcc|cc)(-[\d.]+)?$", lambda m: plus[m[1]] + (m[2] or ""), os.getenv("CC", ""))
    usual = [get_config_var("CXX") or "c++", "c++", "g++", "clang++"]
    candidates = [wanted] if (wanted := os.getenv("CXX") or of_cc) else usual
    if cxx := next((cxx for cxx in candidates if accepts(cxx, FLAGS)), None):
        return cxx
    raise OSError(f"no C++17 compiler: {', '.join(dict.fromkeys(candidates))} cannot be run or refuses C++17")


def cpu_ninja_file(cxx: str, target: str, _: Path) -> str:
    """Write out the CPU module's build: host units, one unit per kernel and instruction set, the link."""
    import pybind11

    path = partial(re.sub, r"([$ :])", r"$\1")
    x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
    isas = {isa: flags for isa, flags in ISA_FLAGS.items() if x86 and accepts(cxx, flags)}
    openmp = "-fopenmp" if accepts(cxx, "-fopenmp") else ""
    user = {n: os.getenv(n, "").replace("$", "$$") for n in ("CPPFLAGS", "CXXFLAGS", "LDFLAGS", "ARCHFLAGS")}
    amx = {"amx": AMX_FLAGS} if "avx512" in isas and accepts(cxx, AMX_FLAGS) else {}
    host = " ".join([openmp, *(f"-DCVK_HAVE_{isa.upper()}" for isa in (*isas, *amx))])
    folders = dict.fromkeys([pybind11.get_include(), get_path("include"), get_path("platinclude")])
    python = " ".join(f"-isystem {shlex.quote(folder)}" for folder in folders).replace("$", "$$")

    units = [
        *((source, "module", f"{host} {python}") for source in MODULE),
        *((s, "host", host) for s in HOST),
    ]
    for sources, flags in ((SIMD, isas), (TILES, amx)):
        units += [(s, "portable", "-DCVK_ISA=portable") for s in sources]
        units += [(s, isa, f"-DCVK_ISA={isa} {flags[isa]}") for s in sources for isa in flags]
    lines = [
        "rule compile",
        f"  command = {cxx} {FLAGS} $flags {user['CPPFLAGS']} {user['CXXFLAGS']} {user['ARCHFLAGS']}"
        " -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {cxx} {LINK} $in -o $out {openmp} {user['LDFLAGS']} {user['ARCHFLAGS']}",
    ]
    objects = [path(f"{source.replace('/', '.')}.{kind}.o") for source, kind, _ in units]
    for (source, _, flags), built in zip(units, objects, strict=True):
        lines.append(f"build {built}: compile {path(str(ROOT / source))}\n  flags = {flags}")
    return "\n".join([*lines, f"build {path(target)}: link {' '.join(objects)}", ""])


class BuildNative(build_ext):
    """`build_ext` through ninja, which compiles in parallel and only what changed."""

    def build_extension(self, ext: Extension) -> None:
        """Build a module, or say in one sentence why it is missing."""
        if sys.platform == "win32":  # setuptools knows where MSVC is; it gets the portable unit alone
            return super().build_extension(ext)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # An editable install is given a temporary folder, where nothing would be incremental.
        folder = (ROOT / "build" / "editable" if self.editable_mode else Path(self.build_temp)).resolve()
        name = ext.name.rpartition(".")[2]
        folder /= name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            write = {"_C_cpu": cpu_ninja_file, "_C_cuda": build_cuda.ninja_file}[name]
            (folder / "build.ninja").write_text(write(find_compiler(), target.name, folder))
            if subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder)]).returncode != 0:
                raise OSError("ninja or the compiler failed, see the messages above")
            self.copy_file(str(folder / target.name), str(target))
        except (ImportError, OSError) as reason:
            target.unlink(missing_ok=True)  # one from an earlier build would be taken for this one
            print(NOT_BUILT[name].format(reason), file=sys.stderr)


def extensions() -> list[Extension]:
    """List the native modules: none where the environment says so, the CUDA module where there is an nvcc."""
    if os.getenv("CAUSALVAE_KERNELS_SKIP_BUILD", "0") not in ("", "0"):
        return []
    msvc = {}
    if sys.platform == "win32":
        includes = [__import__("pybind11").get_include()]
        msvc = {"include_dirs": includes, "extra_compile_args": ["/O2", "/std:c++17", "/openmp"]}
    found = [Extension("causalvae_kernels._C_cpu", [*MODULE, *HOST, *SIMD, *TILES], optional=True, **msvc)]
    if build_cuda.is_wanted():
        found.append(Extension("causalvae_kernels._C_cuda", build_cuda.SOURCES, optional=True))
    return found


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
