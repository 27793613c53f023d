"""Building the native module in a copy of the sources: what is built, and what is left when it cannot be."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="setuptools runs the build")
pytest.importorskip("pybind11", reason="the module's Python side is pybind11")
pytest.importorskip("ninja", reason="ninja compiles")

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "setup.py").exists():
    pytest.skip("the sources of the package are not here", allow_module_level=True)

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")


@pytest.fixture
def sources(tmp_path):
    """A copy of what a build reads, without what an earlier build left."""
    built = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "*.egg-info")
    for name in ("csrc", "causalvae_kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=built)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def build(sources, **environment):
    """Run the build that a wheel is made of; return what it printed."""
    command = [sys.executable, "setup.py", "build", "--build-lib", "lib", "--build-temp", "temp"]
    variables = {k: v for k, v in os.environ.items() if k != "CAUSALVAE_KERNELS_SKIP_BUILD"} | environment
    done = subprocess.run(command, cwd=sources, env=variables, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed


def run_python(sources, code):
    """Run code against the built package."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CAUSALVAE_KERNELS_")}
    # Python looks into its working directory first; what is not there, an editable install of this package
    # would lend from its own sources.
    alone = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
    command = [sys.executable, "-c", alone + code]
    done = subprocess.run(command, cwd=sources / "lib", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def assert_works_without_native(sources):
    assert not list(sources.glob("lib/causalvae_kernels/_C_cpu*"))
    code = "import causalvae_kernels; from causalvae_kernels.core import native; print(native.why_no_cpu())"
    assert "was not built" in run_python(sources, code)


def test_skipped_build_leaves_a_working_package(sources):
    printed = build(sources, CAUSALVAE_KERNELS_SKIP_BUILD="1")
    assert "was not built" not in printed
    assert_works_without_native(sources)


def test_missing_compiler_is_one_sentence(sources):
    printed = build(sources, CXX="/nonexistent/c++")
    sentences = [line for line in printed.splitlines() if "was not built" in line]
    assert len(sentences) == 1
    assert re.search(r"no C\+\+17 compiler: /nonexistent/c\+\+ .* reference and aten; .* CXX", sentences[0])
    assert_works_without_native(sources)


@needs_compiler
def test_failed_compilation_is_one_sentence_and_leaves_nothing_stale(sources):
    stale = sources / "lib" / "causalvae_kernels"
    stale.mkdir(parents=True)
    (stale / f"_C_cpu{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"of an earlier build")
    with (sources / "csrc/common/tensor.h").open("a") as header:
        header.write("#error this build fails\n")
    printed = build(sources)
    assert "this build fails" in printed
    assert sum("was not built" in line for line in printed.splitlines()) == 1
    assert not list(stale.glob("_C_cpu*"))


@needs_compiler
@pytest.mark.slow
def test_build_is_incremental_and_its_units_keep_to_themselves(sources):
    # Without optimisation nothing is inlined away, so that every function a unit could emit is emitted.
    flags = f"{os.environ.get('CXXFLAGS', '')} -O0"
    assert "was not built" not in build(sources, CXXFLAGS=flags)
    code = "from causalvae_kernels.core import native; m = native.cpu_module(); print(*m.compiled_isas())"
    isas = run_python(sources, code).split()
    assert "no work to do" in build(sources, CXXFLAGS=flags)

    if sys.platform != "linux" or shutil.which("nm") is None:
        pytest.skip("symbols are read with GNU nm")
    for isa in isas:
        objects = list(sources.glob(f"temp/*.{isa}.o"))
        assert objects, f"no unit for {isa}"
        for path in objects:
            listed = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
            for kind, name in (line.split()[-2:] for line in listed.splitlines()):
                # The linker keeps one of several weak definitions: perhaps the one for the wider unit.
                assert kind not in "WwVvu", f"{path.name} has the weak symbol {name}"
                if kind == "U":
                    assert not name.startswith("_Z"), f"{path.name} calls C++ outside itself: {name}"
                elif kind.isupper():
                    assert isa in name, f"{path.name} exports {name}, which does not name {isa}"


def test_native_code_knows_no_framework():
    for path in (ROOT / "csrc").rglob("*.*"):
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)", path.read_text()), path
