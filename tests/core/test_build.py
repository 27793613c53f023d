"""Building the native modules in a copy of the sources: what is built, and what is left when it cannot be.

The CUDA module itself takes minutes: tests/aot looks at the one that this installation was built with.
"""

import importlib.util
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
    for name in ("setup.py", "build_cuda.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def build(sources, **environment):
    """Run the build that a wheel is made of; return what it printed."""
    command = [sys.executable, "setup.py", "build", "--build-lib", "lib", "--build-temp", "temp"]
    variables = {k: v for k, v in os.environ.items() if k != "CAUSALVAE_KERNELS_SKIP_BUILD"}
    variables |= {"CAUSALVAE_KERNELS_CUDA_ARCH_LIST": "none"} | environment
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
    assert not list(sources.glob("lib/causalvae_kernels/_C_*"))
    code = "import causalvae_kernels, torch; from causalvae_kernels.core import native as n; "
    code += "print(n.why_no_cpu()); print(n.why_no_cuda(torch.device('cpu')))"
    printed = run_python(sources, code)
    assert re.fullmatch("the native CPU module was not built: .*\nthe CUDA module was not built: .*", printed)


def test_skipped_build_leaves_a_working_package(sources):
    printed = build(sources, CAUSALVAE_KERNELS_SKIP_BUILD="1")
    assert "was not built" not in printed
    built = sources / "lib" / "causalvae_kernels"
    assert (built / "ops/causal_conv3d/tuned/avx512.json").is_file()
    assert not (built / "demo/weights").exists(), "the demo's weights are left to source trees"
    assert_works_without_native(sources)


def test_missing_compiler_is_one_sentence(sources):
    printed = build(sources, CXX="/nonexistent/c++")
    sentences = [line for line in printed.splitlines() if "was not built" in line]
    assert len(sentences) == 1
    assert re.search(r"no C\+\+17 compiler: /nonexistent/c\+\+ .* reference and aten; .* CXX", sentences[0])
    assert_works_without_native(sources)


@pytest.fixture
def fake_cuda(tmp_path):
    """An nvcc that compiles nothing, and a package with CUTLASS's folders and no headers."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho this nvcc fails >&2\nexit 1\n")
    nvcc.chmod(0o755)
    for folder in ("include", "tools/util/include"):
        (tmp_path / "site" / "cutlass_library" / "source" / folder).mkdir(parents=True)
    (tmp_path / "site" / "cutlass_library" / "__init__.py").touch()
    return {
        "CUDACXX": str(nvcc),
        "CAUSALVAE_KERNELS_CUDA_ARCH_LIST": "80",
        "PYTHONPATH": str(tmp_path / "site"),
    }


def test_an_old_setuptools_is_one_sentence():
    code = "import runpy, setuptools; setuptools.__version__ = '68.1.2'; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "setuptools 68.1.2 does not know the license" in done.stderr


@pytest.mark.exhaustive
@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="the CUDA module is built on Linux")
def test_failed_compilation_is_one_sentence_each_and_leaves_nothing_stale(sources, fake_cuda):
    stale = sources / "lib" / "causalvae_kernels"
    stale.mkdir(parents=True)
    for name in ("_C_cpu", "_C_cuda"):
        (stale / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"of an earlier build")
    with (sources / "csrc/common/tensor.h").open("a") as header:
        header.write("#error this build fails\n")
    printed = build(sources, **fake_cuda)
    assert "this build fails" in printed and "this nvcc fails" in printed
    sentences = [line for line in printed.splitlines() if "was not built" in line]
    assert sorted(re.findall(r"the (native CPU|CUDA) module", "".join(sentences))) == ["CUDA", "native CPU"]
    assert not list(stale.glob("_C_*"))


@needs_compiler
@pytest.mark.exhaustive
def test_build_is_incremental_and_its_units_keep_to_themselves(sources):
    # Without optimisation nothing is inlined away, so that every function a unit could emit is emitted.
    flags = f"{os.environ.get('CXXFLAGS', '')} -O0"
    assert "was not built" not in build(sources, CXXFLAGS=flags)
    code = "from causalvae_kernels.core import native; m = native.cpu_module(); print(*m.compiled_isas())"
    isas = run_python(sources, code).split()
    assert "no work to do" in build(sources, CXXFLAGS=flags)
    modules = [path.name.partition(".")[0] for path in sources.glob("lib/causalvae_kernels/_C_*")]
    assert modules == ["_C_cpu"], "the host emulation is for tests"
    assert not [path for path in sources.glob("temp/_C_cpu/*.o") if re.search("emulation|cuda", path.name)]

    if sys.platform != "linux" or shutil.which("nm") is None:
        pytest.skip("symbols are read with GNU nm")
    for isa in isas:
        objects = list(sources.glob(f"temp/_C_cpu/*.{isa}.o"))
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


# ---------------------------------------------------------------- build_cuda.py


@pytest.fixture
def build_cuda(monkeypatch):
    """The build back end as a module, with nothing of CUDA in the environment."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CAUSALVAE_KERNELS_SKIP_BUILD"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "build_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_nvcc_nothing_of_cuda_is_asked_for(build_cuda, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build_cuda, "USUAL_NVCC", str(tmp_path / "nvcc"))
    assert build_cuda.find_nvcc() is None and not build_cuda.is_wanted() and build_cuda._requires() == []
    monkeypatch.chdir(ROOT)
    assert not any("cutlass" in requirement for requirement in build_cuda.get_requires_for_build_wheel())


@pytest.mark.skipif(os.name != "posix", reason="the CUDA module is built on Linux")
def test_where_an_nvcc_is_looked_for(build_cuda, monkeypatch, tmp_path):
    def make(folder):
        nvcc = tmp_path / folder / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.touch(mode=0o755)
        return str(nvcc)

    usual, on_path, of_home = map(make, ("usual", "path", "home/bin"))
    monkeypatch.setattr(build_cuda, "USUAL_NVCC", usual)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_cuda.find_nvcc() == usual
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert build_cuda.find_nvcc() == on_path
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert build_cuda.find_nvcc() == of_home
    monkeypatch.setenv("CUDACXX", "anything")
    assert build_cuda.find_nvcc() == "anything"


@pytest.mark.skipif(os.name != "posix", reason="the CUDA module is built on Linux")
def test_where_there_is_an_nvcc_its_headers_are_asked_for(build_cuda, fake_cuda, monkeypatch):
    monkeypatch.setenv("CUDACXX", fake_cuda["CUDACXX"])
    monkeypatch.setattr(build_cuda, "find_cutlass", lambda: None)
    monkeypatch.chdir(ROOT)
    for hook in (build_cuda.get_requires_for_build_wheel, build_cuda.get_requires_for_build_editable):
        assert build_cuda.CUTLASS in hook()
    monkeypatch.setenv("CAUSALVAE_KERNELS_CUDA_ARCH_LIST", "none")
    assert build_cuda._requires() == []
    monkeypatch.delenv("CAUSALVAE_KERNELS_CUDA_ARCH_LIST")
    monkeypatch.setenv("CAUSALVAE_KERNELS_SKIP_BUILD", "1")
    assert build_cuda._requires() == []


def test_headers_are_found_without_importing_their_package(build_cuda, fake_cuda, monkeypatch):
    site = Path(fake_cuda["PYTHONPATH"])
    (site / "cutlass_library" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(site))
    source = site / "cutlass_library" / "source"
    assert build_cuda.find_cutlass() == [source / "include", source / "tools/util/include"]
    shutil.rmtree(source)
    assert build_cuda.find_cutlass() is None


@pytest.mark.parametrize(
    ("listed", "cutlass", "nvcc", "sentence"),
    [
        ("80", None, "sh", r"CUTLASS's headers are missing: pip install 'nvidia-cutlass>=4\.2,<5'"),
        ("80;Hopper", [], "sh", "holds 'Hopper', expected numbers like '80;90a'"),
        ("80", [], "/nonexistent/nvcc", "nvcc cannot be run: /nonexistent/nvcc"),
    ],
)
def test_what_is_missing_is_a_sentence(build_cuda, monkeypatch, tmp_path, listed, cutlass, nvcc, sentence):
    monkeypatch.setenv("CAUSALVAE_KERNELS_CUDA_ARCH_LIST", listed)
    monkeypatch.setenv("CUDACXX", nvcc)
    monkeypatch.setattr(build_cuda, "find_cutlass", lambda: cutlass)
    with pytest.raises(OSError, match=sentence):
        build_cuda.ninja_file("c++", "module.so", tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="the CUDA module is built on Linux")
@pytest.mark.parametrize(
    ("listed", "flags"),
    [
        ("80;90a", {"sm80": {"80"}, "sm90": {"90a"}, "both": {"80", "90a"}}),
        ("86 89,90", {"sm80": {"86", "89"}, "sm90": set(), "both": {"86", "89", "90"}}),
        ("100", {"sm80": set(), "sm90": set(), "both": {"100"}}),
    ],
)
def test_each_unit_is_compiled_for_the_gpus_that_it_is_written_for(
    build_cuda, fake_cuda, monkeypatch, tmp_path, listed, flags
):
    monkeypatch.setenv("CAUSALVAE_KERNELS_CUDA_ARCH_LIST", listed)
    monkeypatch.setenv("CUDACXX", fake_cuda["CUDACXX"])
    monkeypatch.setattr(build_cuda, "find_cutlass", lambda: [tmp_path])
    text = build_cuda.ninja_file("c++", "module.so", tmp_path)
    assert text == build_cuda.ninja_file("c++", "module.so", tmp_path)  # ninja sees no new command
    assert str(tmp_path / "site") not in text
    units = re.findall(r"build (\S+)\.cu\.o: nvcc \S+\n  flags = (.*)", text)
    for name, given in units:
        kind = next((k for k in ("sm80", "sm90") if f".{k}." in name), "both")
        assert set(re.findall(r"code=sm_(\w+)", given)) == flags[kind], name
        if kind == "both":
            assert all((f"CVK_HAVE_{k.upper()}" in given) == bool(flags[k]) for k in ("sm80", "sm90"))
    assert sum(".sm90." in name for name, _ in units) == (4 if flags["sm90"] else 0)


def test_native_code_knows_no_framework():
    for path in (ROOT / "csrc").rglob("*.*"):
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)", path.read_text()), path
