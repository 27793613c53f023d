"""Which memory the sm_90a convolution reads and writes, on the host: `conv_coordinates.cu`, compiled and run.

CUTLASS makes tensor maps and coordinates before the launch, in C++; the program takes them apart and computes
small convolutions with them. It needs nvcc and CUTLASS's headers, and no GPU.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "build_cuda.py").exists():
    pytest.skip("the sources of the package are not here", allow_module_level=True)
pytest.importorskip("setuptools", reason="the build of the CUDA module is a back end of it")
_spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "build_cuda.py")
build_cuda = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_cuda)

NVCC, CUTLASS = build_cuda.find_nvcc(), build_cuda.find_cutlass()


@pytest.mark.exhaustive
@pytest.mark.skipif(NVCC is None, reason="there is no nvcc here")
@pytest.mark.skipif(
    CUTLASS is None, reason=f"CUTLASS's headers are not here: pip install '{build_cuda.CUTLASS}'"
)
def test_every_product_is_of_the_right_pixel_and_weight(tmp_path, seed):
    program = tmp_path / "coordinates"
    command = [NVCC, "-std=c++17", "-O1", "-DNDEBUG", "--expt-relaxed-constexpr"]
    command += ["-gencode=arch=compute_90a,code=sm_90a", f"-I{ROOT / 'csrc'}"]
    command += [option for folder in CUTLASS for option in ("-isystem", str(folder))]
    command += [str(ROOT / "csrc" / name) for name in ("common/check.cpp", "cuda/host/implicit_conv.cpp")]
    command += [str(Path(__file__).with_name("conv_coordinates.cu")), "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run([str(program), str(seed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    count = re.fullmatch(r"(\d+) convolutions read and write what they should\n", done.stdout)
    assert int(count[1]) > 100
