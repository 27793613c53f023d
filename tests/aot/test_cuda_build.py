"""The CUDA module that this installation was built with: its machine code, and what it does without a GPU.

What a kernel computes on a GPU is not tested here. Its index arithmetic is, on the host, in
tests/core/test_index.py, tests/ops/test_cuda_plans.py and test_cuda_coordinates.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from causalvae_kernels.core import native
from tests.support import emulation

MODULE, REASON = native._load(native.CUDA)
if MODULE is None:
    pytest.skip(REASON, allow_module_level=True)

FILE = Path(MODULE.__file__)
ARCHS = MODULE.compiled_archs()
CALLS = """
import causalvae_kernels._C_cuda as C
x = (64, (1, 8, 3, 4, 5), (480, 1, 160, 40, 8))
out = (64, (1, 8, 5, 4, 5), (800, 1, 160, 40, 8))
weight = (64, (8, 8, 3, 3, 3), (216, 1, 72, 24, 8))
ones = (1, 1, 1)
conv = (x, x, weight, None, None, ones, ones, (2, 1, 1), (0, 1, 1), "bfloat16", 0, 0)
calls = {
    "pad": lambda: C.causal_pad3d(out, x, None, 2, (0, 0, 0, 0), "zeros", "zeros", 2, 0, 0),
    "pad_": lambda: C.causal_pad3d_(out, None, 2, (0, 0, 0, 0), "zeros", "zeros", 2, 0, 0),
    "conv": lambda: C.causal_conv3d(*conv),
    "empty": lambda: C.causal_pad3d_(out, None, 0, (0, 0, 0, 0), "zeros", "zeros", 2, 0, 0),
}
for name, call in calls.items():
    try:
        print(name, call())
    except RuntimeError as error:
        print(name, "raised:", error)
"""


def cuobjdump(*options: str) -> str:
    """What the module's GPU code looks like; the tool is the toolkit's, or Triton's."""
    triton = find_spec("triton")
    folders = [Path(os.path.realpath(shutil.which("nvcc") or "nvcc")).parent]
    folders += [Path(p, "backends/nvidia/bin") for p in triton.submodule_search_locations] if triton else []
    tools = [shutil.which("cuobjdump"), *(shutil.which(str(folder / "cuobjdump")) for folder in folders)]
    tool = next(filter(None, tools), None)
    if tool is None:
        pytest.skip("neither the toolkit's nor Triton's cuobjdump is here")
    path = os.pathsep.join([str(Path(tool).parent), os.environ.get("PATH", "")])  # it calls nvdisasm
    done = subprocess.run(
        [tool, *options, str(FILE)], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def code() -> dict[str, dict[str, str]]:
    """The disassembly, by architecture and function."""
    found: dict[str, dict[str, str]] = {arch: {} for arch in ARCHS}
    for arch in ARCHS:
        name, *functions = re.split(r"\n\s*Function : ", cuobjdump("-sass", "-arch", f"sm_{arch}"))
        for text in functions:
            name, _, body = text.partition("\n")
            found[arch][name.strip()] = body
    return found


def matching(functions: dict[str, str], word: str) -> Iterator[str]:
    return (body for name, body in functions.items() if word in name)


def instructions(body: str, word: str) -> list[str]:
    return re.findall(rf"\b{word}[\w.]*", body)


# ---------------------------------------------------------------- without a GPU


@pytest.fixture(scope="module")
def without_gpu() -> dict[str, str]:
    """What calls of the module print in a process that sees no GPU."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("pad", r"causal_pad3d \(x \(1, 8, 3, 4, 5\), out \(1, 8, 5, 4, 5\), 16-byte items\)"),
        ("pad_", r"causal_pad3d_ \(x \(1, 8, 3, 4, 5\), out \(1, 8, 5, 4, 5\), 16-byte items\)"),
        ("conv", r"causal_conv3d \(x \(1, 8, 3, 4, 5\), weight \(8, 8, 3, 3, 3\), out \(1, 8, 3, 4, 5\)\)"),
    ],
)
def test_a_call_says_that_there_is_no_gpu_in_cudas_words(call, words, without_gpu):
    sentence = rf"raised: {words}: there is no GPU to run it on; CUDA says '.+' \(cudaError\w+\)"
    assert re.fullmatch(sentence, without_gpu[call])


def test_nothing_to_write_needs_no_gpu(without_gpu):
    assert without_gpu["empty"] == "None"


def test_arguments_are_checked_before_the_gpu_is_asked():
    x = (64, (1, 8, 3, 4, 5), (480, 1, 160, 40, 8))
    with pytest.raises(ValueError, match="expected none negative"):
        MODULE.causal_pad3d(x, x, None, -1, (0, 0, 0, 0), "zeros", "zeros", 2, 0, 0)
    weight = (64, (8, 8, 3, 3, 3), (216, 27, 9, 3, 1))
    ones = (1, 1, 1)
    with pytest.raises(ValueError, match="weight has strides .* expected channels innermost"):
        MODULE.causal_conv3d(x, x, weight, None, None, ones, ones, (2, 1, 1), (0, 1, 1), "float16", 0, 0)


def test_it_plans_as_the_host_emulation_does():
    for given in (
        (1, 3, 1, 1, False, "zeros"),
        (1, 3, 1, 1, False, "replicate"),
        (5, 3, 2, 1, True, "zeros"),
    ):
        ours, emulated = (module.time_taps(*given) for module in (MODULE, emulation.load()))
        for name in ("first", "count", "step", "zeros", "copied", "summed"):
            assert getattr(ours, name) == getattr(emulated, name)


# ---------------------------------------------------------------- machine code


def test_it_holds_code_for_the_architectures_that_it_names():
    assert set(re.findall(r"\.sm_(\w+)\.cubin", cuobjdump("--list-elf"))) == set(ARCHS)


def test_no_kernel_spills_or_has_a_stack():
    found = re.findall(
        r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", cuobjdump("--dump-resource-usage")
    )
    assert len(found) >= 9 * len(ARCHS)
    for name, registers, stack, local in found:
        assert (stack, local) == ("0", "0") and int(registers) <= 255, name


@pytest.mark.skipif("90a" not in ARCHS, reason=f"the module was built for {ARCHS}")
def test_the_convolution_for_hopper_uses_wgmma_and_tma(code):
    kernels = list(matching(code["90a"], "GemmMainloop"))
    widths = {(n, kind) for _, n, _, _ in emulation.load().conv_tiles() for kind in ("", ".BF16")}
    assert len(kernels) == len(widths)
    for body in kernels:
        products = instructions(body, "HGMMA")
        (width,) = {re.fullmatch(r"HGMMA\.64x(\d+)x16\.F32(\.BF16)?", p).groups() for p in products}
        widths.remove((int(width[0]), width[1] or ""))
        assert any("IM2COL" in load for load in instructions(body, "UTMALDG"))
        assert any("MULTICAST" in load for load in instructions(body, "UTMALDG"))
        assert all("IM2COL" in store for store in instructions(body, "UTMASTG")) and "UTMASTG" in body
        # A function call, such as an assertion's, makes the compiler wait for every product (C7510).
        assert not instructions(body, "CALL")
        assert 2 * len(re.findall(r"HGMMA[^;]*gsb0", body)) <= len(products)
    assert not widths


def test_the_convolution_for_ampere_uses_mma_and_asynchronous_copies(code):
    archs = [arch for arch in ARCHS if re.fullmatch(r"8\d", arch)]
    if not archs:
        pytest.skip(f"the module was built for {ARCHS}")
    for arch in archs:
        kernels = list(matching(code[arch], "ImplicitGemmConvolution"))
        assert len(kernels) == 2
        assert {p for body in kernels for p in instructions(body, "HMMA")} == {
            "HMMA.16816.F32",
            "HMMA.16816.F32.BF16",
        }
        for body in kernels:
            assert any("128" in copy for copy in instructions(body, "LDGSTS"))
            assert all("128" in store for store in instructions(body, "STG") if "STRONG" not in store)


def test_padding_moves_sixteen_bytes_at_a_time_with_four_loads_under_way(code):
    for arch in ARCHS:
        (body,) = (b for name, b in code[arch].items() if "pad_items" in name and "uint4" in name)
        assert all("128" in move for kind in ("LDG", "STG") for move in instructions(body, kind))
        moves = "".join("L" if "LDG" in move else "S" for move in re.findall(r"\b(?:LDG|STG)\.", body))
        assert moves == "LLLLSSSS"
        assert sum("pad_items" in name for name in code[arch]) == 5
        assert sum("pad_tiles" in name for name in code[arch]) == 4


# ---------------------------------------------------------------- the file


@pytest.mark.skipif(sys.platform != "linux", reason="symbols are read with GNU binutils")
def test_the_cuda_runtime_is_inside_and_shows_nothing():
    """torch loads a runtime of its own, whose functions must not be taken for ours, nor ours for its."""
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not here")

    def readelf(*options):
        done = subprocess.run(
            ["readelf", "-W", *options, str(FILE)], capture_output=True, text=True, check=True
        )
        return done.stdout

    assert not re.search(r"NEEDED.*(cudart|libcuda|torch|c10)", readelf("-d"))
    symbols = [line.split() for line in readelf("--dyn-syms").splitlines()]
    exported = {s[7] for s in symbols if len(s) > 7 and s[4] in ("GLOBAL", "WEAK") and s[6] != "UND"}
    assert {name for name in exported if not name.startswith("_Z")} == {"PyInit__C_cuda"}
    assert not [s[7] for s in symbols if len(s) > 7 and s[6] == "UND" and s[7].startswith("cuda")]
