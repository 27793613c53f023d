"""Both ops at full size on the GPU of this machine, into results/<gpu>.json and a plot: `make bench-gpu`.

A run that was stopped goes on where it was; to measure anew, delete the record. torch.compile takes its time
for every shape, so that it is a provider of a few workloads only; the others have no such column.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parent / "results"

# One for each family of widths: CogVideoX, Wan 2.1, Wan 2.2, HunyuanVideo.
COMPILED = ("256x256-8x240x360", "192x192-4x240x416", "320x320-4x176x320", "128x128-17x256x256")


def short_name(gpu: str) -> str:
    """Return "h200" for "NVIDIA H200", "h100" for "NVIDIA H100 80GB HBM3"."""
    words = re.findall(r"[a-z0-9]+", gpu.lower())
    return next((word for word in words if any(c.isdigit() for c in word)), "-".join(words))


def runs() -> list[tuple[str, list[str]]]:
    """Return the op and the options of each call of `bench`; a later one measures what is not there yet."""
    compiled = ["--compiled", *(word for name in COMPILED for word in ("--workload", name))]
    return [("causal_pad3d", []), ("causal_conv3d", compiled), ("causal_conv3d", [])]


def main() -> int:
    """Run the command line for each of `runs`; return the first exit code that is not 0."""
    if not torch.cuda.is_available():
        print("bench-gpu: torch sees no GPU here; for the floors: causalvae-kernels bench --model h200")
        return 1
    name = short_name(torch.cuda.get_device_name())
    codes = []
    for op, options in runs():
        files = ["--json", RESULTS / f"{name}.json", "--png", RESULTS / f"{name}-{op}.png"]
        command = ["bench", "--device", "cuda", "--op", op, "--rounds", "11", "--resume", *options, *files]
        run = "from causalvae_kernels.cli import main; main()"
        codes.append(subprocess.run([sys.executable, "-c", run, *map(str, command)]).returncode)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
