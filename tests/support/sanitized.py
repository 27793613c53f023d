"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`.

`python -m tests.support.sanitized` builds `_C_cpu` with both into build/sanitized, as setup.py builds the one
that is shipped, sees that each finds a deliberate fault, and runs the kernels' own tests with it; arguments
go to pytest. Fresh memory is filled with NaN, so that a kernel that reads what nobody wrote fails its test.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from sysconfig import get_config_var

ROOT = Path(__file__).resolve().parents[2]
_NAME = "causalvae_kernels._C_cpu"
_BUILD = ROOT / "build/sanitized"
_MODULE = _BUILD / f"{_NAME.replace('.', '/')}{get_config_var('EXT_SUFFIX')}"
_SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
_OPTIONS = {
    # torch never frees what it allocates once; 255 in every byte is a NaN in each floating-point dtype.
    "ASAN_OPTIONS": "detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=67108864",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}
_TESTS = (
    "tests/core/test_native.py",
    "tests/core/test_native_norms.py",
    "tests/ops/test_causal_conv3d.py",
    "tests/ops/test_causal_pad3d.py",
    "tests/ops/test_downsample_conv.py",
    "tests/ops/test_norms.py",
    "tests/ops/test_residual_in_place.py",
    "tests/ops/test_upsample_conv.py",
    "tests/ops/test_winograd.py",
)
# torch.compile would compile with the preloaded libraries in its child processes.
_SELECTED = "(cpu or test_native or test_winograd) and not compile"

# A deliberate fault for each sanitizer, and what it has to say: sizes larger than the tensor, half a float.
_PROBES = {
    "heap-buffer-overflow": "C.causal_pad3d(d(out), (x.data_ptr(), (1, 2, 2, 3, 5), x.stride()), *rest)",
    "misaligned address": "C.group_norm(d(y), d(y), None, None, y.data_ptr() + 2, None, *norm)",
}
_PROBE = """
import torch
from causalvae_kernels.core import native
C, d = native.cpu_module(), native.describe
x, out, y = torch.zeros(1, 2, 2, 3, 4), torch.zeros(1, 2, 2, 3, 5), torch.zeros(1, 2, 1, 3, 5)
rest = (None, 0, (0, 0, 0, 0), "zeros", "zeros", 4, 1)
norm = (1, 1e-5, True, False, (1, 1, 1), "float32", "portable", 1)
"""


def load() -> None:
    """Have the package find the sanitized module instead of the one that is shipped."""
    spec = importlib.util.spec_from_file_location(_NAME, _MODULE)
    sys.modules[_NAME] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def build() -> None:
    """Compile what changed.

    Raises:
        OSError: The compiler is not GCC, or it failed; its messages went to stderr.
    """
    flags = {"CXXFLAGS": f"-O1 -g -fno-omit-frame-pointer {_SANITIZE}", "LDFLAGS": _SANITIZE}
    variables = flags | {"CXX": _compiler(), "CAUSALVAE_KERNELS_CUDA_ARCH_LIST": "none"}
    folders = ["--build-lib", str(_BUILD), "--build-temp", str(_BUILD / "objects")]
    command = [sys.executable, "setup.py", "-q", "build_ext", *folders]
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)
    if not _MODULE.exists():
        raise OSError("the sanitized CPU module was not built: see the messages above")


def environment() -> dict[str, str]:
    """Return what a process needs to run the sanitized module.

    Raises:
        OSError: The compiler is not GCC with its sanitizers.
    """
    # libstdc++ as well: AddressSanitizer looks for the exceptions' functions as soon as it is loaded.
    preloaded = " ".join(map(_library, ("libasan.so", "libstdc++.so")))
    plugin = {"LD_PRELOAD": preloaded, "PYTEST_PLUGINS": "tests.support.sanitized_plugin"}
    return os.environ | _OPTIONS | plugin


def check() -> None:
    """See that each sanitizer ends a process for a fault of its kind.

    Raises:
        RuntimeError: One did not.
    """
    for words, call in _PROBES.items():
        code = f"from tests.support import sanitized; sanitized.load()\n{_PROBE}{call}"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        if done.returncode == 0 or words not in done.stderr:
            raise RuntimeError(
                f"a deliberate fault ended with status {done.returncode}, and the sanitizer did not say "
                f"'{words}', but: {done.stderr[-2000:] or 'nothing'}"
            )


def _compiler() -> str:
    return os.getenv("CXX") or "g++"


def _library(name: str) -> str:
    command = [*shlex.split(_compiler()), f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(path):
        raise OSError(f"{_compiler()} has no {name}, which GCC on Linux has: name one in CXX")
    return path


if __name__ == "__main__":
    build()
    check()
    pytest = [sys.executable, "-m", "pytest", "-q", "-k", _SELECTED, *sys.argv[1:], *_TESTS]
    sys.exit(subprocess.run(pytest, cwd=ROOT, env=environment()).returncode)
