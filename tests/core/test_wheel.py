"""What `make wheel` and the release workflow look for in a wheel."""

import zipfile

import pytest

from tests.support.wheel import MOST_BYTES, complaints, main

GOOD = (
    "causalvae_kernels/__init__.py",
    "causalvae_kernels/py.typed",
    "causalvae_kernels/cli/__init__.py",
    "causalvae_kernels/models/without_weights.py",
    "causalvae_kernels/ops/causal_conv3d/tuned/avx512.json",
    "causalvae_kernels/_C_cpu.cpython-311-x86_64-linux-gnu.so",
    "causalvae_kernels-0.1.0.dist-info/licenses/LICENSE",
)


@pytest.fixture
def wheel(tmp_path):
    """Return a function that writes a wheel of these names."""

    def write(names, content=b""):
        path = tmp_path / "w.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, content)
        return path

    return write


def test_a_good_wheel(wheel, capsys):
    path = wheel(GOOD)
    assert complaints(path) == [] and main([str(path)]) == 0
    assert "written:" in capsys.readouterr().out


def test_a_pure_wheel(wheel):
    assert complaints(wheel(n for n in GOOD if "_C_cpu" not in n), pure=True) == []
    assert complaints(wheel(GOOD), pure=True) == ["it holds a native module, expected none"]


@pytest.mark.parametrize("missing", [name for name in GOOD if "without_weights" not in name])
def test_what_is_missing_is_named(wheel, missing, capsys):
    path = wheel(name for name in GOOD if name != missing)
    (sentence,) = complaints(path)
    assert "it holds nothing like" in sentence
    assert main([str(path)]) == 1 and "w.whl: it holds nothing like" in capsys.readouterr().err


@pytest.mark.parametrize(
    "surplus",
    [
        "causalvae_kernels/demo/weights/config.json",
        "causalvae_kernels/clip.mp4",
        "causalvae_kernels.libs/libgomp-0a1b.so.1",
        "causalvae_kernels/_C_cuda.cpython-311-x86_64-linux-gnu.so",
        "benchmarks/results/cpu.json",
        "tests/__init__.py",
        "csrc/common/tensor.h",
    ],
)
def test_what_is_too_much_is_named(wheel, surplus):
    assert complaints(wheel((*GOOD, surplus))) == [f"it holds {surplus}"]


def test_too_large(wheel):
    (sentence,) = complaints(wheel(GOOD, b"\0" * (MOST_BYTES // len(GOOD) + 1)))
    assert "expected at most" in sentence
