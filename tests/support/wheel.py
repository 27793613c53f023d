"""Look into a wheel: `python tests/support/wheel.py [--pure] dist/*.whl`; exit code 1 if it is not right."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

MOST_BYTES = 8 * 2**20
_NEEDED = (
    r"causalvae_kernels/__init__\.py",
    r"causalvae_kernels/py\.typed",
    r"causalvae_kernels/cli/__init__\.py",
    r"causalvae_kernels/ops/causal_conv3d/tuned/avx512\.json",
    r"causalvae_kernels-[^/]+\.dist-info/licenses/LICENSE",
)
_NATIVE = r"causalvae_kernels/_C_cpu\.[^/]+"
# What torch brings, what a GPU machine builds for itself, and what only a source tree needs.
_FORBIDDEN = (
    r"weights/|\.(safetensors|mp4|png|cpp|cu|h|pt)$|^(tests|benchmarks|docs|examples)/"
    r"|_C_cuda|libgomp|libtorch|libc10"
)


def complaints(path: Path, pure: bool = False) -> list[str]:
    """Return a sentence for everything that is wrong with a wheel.

    Args:
        path: The wheel.
        pure: Whether it was built without native modules.
    """
    found = []
    size = path.stat().st_size
    if size > MOST_BYTES:
        found.append(f"it has {size:,} bytes, expected at most {MOST_BYTES:,}")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    for pattern in (*_NEEDED, *(() if pure else (_NATIVE,))):
        if not any(re.fullmatch(pattern, name) for name in names):
            found.append(f"it holds nothing like {pattern}")
    if pure and any(re.fullmatch(_NATIVE, name) for name in names):
        found.append("it holds a native module, expected none")
    found += [f"it holds {name}" for name in names if re.search(_FORBIDDEN, name)]
    return found


def main(arguments: list[str]) -> int:
    """Check the wheels that are named; return the exit code."""
    pure = "--pure" in arguments
    code = 0
    for path in (Path(name) for name in arguments if name != "--pure"):
        for sentence in (found := complaints(path, pure)):
            print(f"{path.name}: {sentence}", file=sys.stderr)
        code |= bool(found)
        if not found:
            print(f"written: {path}, {path.stat().st_size / 2**20:.1f} MiB")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
