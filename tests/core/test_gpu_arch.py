"""The table of GPU architectures: what serves a GPU, and which convolution a code holds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from causalvae_kernels.core.gpu_arch import ARCHS, arch_of, arch_of_code, code_for, dots, newest_code

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("capability", "row"), [(75, 80), (80, 80), (87, 86), (90, 90), (103, 100), (110, 100), (121, 120)]
)
def test_a_gpu_takes_the_newest_row_that_is_not_newer(capability, row):
    assert arch_of(capability).capability == row


def test_the_newest_code_that_a_gpu_runs_is_taken():
    assert newest_code(("80", "86", "89", "90", "90a"), 89) == "89"
    assert newest_code(("80", "86"), 89) == "86"
    assert newest_code(("80", "90", "90a"), 90) == "90a"
    assert newest_code(("89",), 86) is None
    assert newest_code(("90a", "100a", "100"), 103) == "100"


@pytest.mark.parametrize(
    ("code", "folder"),
    [
        ("80", "sm80"),
        ("87", "sm80"),
        ("89", "sm80"),
        ("90a", "sm90"),
        ("90", None),
        ("75", None),
        ("100", None),
        ("100f", None),
        ("110", None),
    ],
)
def test_which_convolution_a_code_holds(code, folder):
    row = arch_of_code(code)
    assert (row and row.cuda_conv) == folder


def test_what_to_compile_for_a_gpu():
    assert [code_for(c) for c in (75, 86, 90, 103)] == ["75", "86", "90a", "103"]
    assert dots(90) == "9.0" and dots(120) == "12.0"


@pytest.mark.skipif(not (ROOT / "build_cuda.py").exists(), reason="the sources of the package are not here")
def test_the_build_compiles_each_folder_for_the_same_code(monkeypatch, tmp_path):
    """build_cuda.py cannot import the table."""
    pytest.importorskip("setuptools", reason="the build of the CUDA module is a back end of it")
    pytest.importorskip("pybind11", reason="the module's Python side is pybind11")
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "build_cuda.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    monkeypatch.setenv("CUDACXX", "sh")
    monkeypatch.setattr(build, "find_cutlass", lambda: [tmp_path])
    for code in (*(row.code for row in ARCHS), "87", "90", "100f"):
        monkeypatch.setenv("CAUSALVAE_KERNELS_CUDA_ARCH_LIST", code)
        units = re.findall(r"build csrc\.cuda\.(sm\d+)\.", build.ninja_file("c++", "module.so", tmp_path))
        row = arch_of_code(code)
        assert set(units) == {row.cuda_conv} - {None} if row else not units, code
