"""compute-sanitizer on small calls of every backend of ours: no access out of bounds, no race."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("torch sees no NVIDIA GPU", allow_module_level=True)

SANITIZER = shutil.which("compute-sanitizer")

CALLS = """
import sys, torch
from causalvae_kernels import causal_conv3d, causal_pad3d, causal_pad3d_, explain
from causalvae_kernels import downsample_conv, upsample_conv
from causalvae_kernels.workloads import DOWNSAMPLE_CASES, UPSAMPLE_CASES, DownsampleCase, UpsampleCase
from causalvae_kernels.workloads import make_downsample_call, make_upsample_call
from causalvae_kernels.workloads import CONV_CASES, PAD_CASES, ConvCase, in_buffer
from causalvae_kernels.workloads import NORM_CASES, make_conv_call, make_norm_call, make_pad_call
from causalvae_kernels.parity.norms import NORMS
backend = sys.argv[1]
ran = 0
wide = ConvCase("wide", (1, 64, 3, 9, 13), 96, layout="channels_last_3d", state=True, residual=True)
for case in (*CONV_CASES[:12], wide):
    call = make_conv_call(case, torch.bfloat16, 0, "cuda")
    if explain("causal_conv3d", **call, backend=backend).chosen == backend:
        causal_conv3d(**call, backend=backend)
        ran += 1
for case in PAD_CASES:
    call = make_pad_call(case, torch.bfloat16, 0, "cuda")
    causal_pad3d(**call, backend=backend)
    buffer = in_buffer(call.pop("x"), call.pop("causal_padding"), call.pop("spatial_padding"))
    causal_pad3d_(buffer, **call, backend=backend)
for op, norm in NORMS.items():
    for case in NORM_CASES:
        call = make_norm_call(op, case, torch.bfloat16, 0, "cuda")
        if explain(op, **call, backend=backend).chosen == backend:
            norm(**call, backend=backend)
            norm(**call, out=in_buffer(torch.zeros_like(call["x"]), 2, (1, 1, 2, 0)), backend=backend)
kinds = ((1, (1, 2, 2)), (3, (2, 2, 2)), (3, (2, 1, 1)))
up = [UpsampleCase("up", (1, 64, 2, 7, 9), 96, frames, scale) for frames, scale in kinds]
for case in (*UPSAMPLE_CASES[:2], *up):
    call = make_upsample_call(case, torch.bfloat16, 0, "cuda")
    if explain("upsample_conv", **call, backend=backend).chosen == backend:
        upsample_conv(**call, backend=backend)
for case in (DOWNSAMPLE_CASES[5], DownsampleCase("down", (1, 64, 3, 9, 13), 96, True)):
    call = make_downsample_call(case, torch.bfloat16, 0, "cuda")
    if explain("downsample_conv", **call, backend=backend).chosen == backend:
        downsample_conv(**call, backend=backend)
torch.cuda.synchronize()
assert ran, "no convolution ran"
"""


# torch asks the driver for what it does not need, and looks at the answers itself. What racecheck only warns
# of is no race; torch's own kernels (`at::native`) are left out. A filter that names ours might match none.
OPTIONS = {
    "memcheck": ["--report-api-errors", "no"],
    "racecheck": ["--racecheck-detect-level", "error", "--kernel-name-exclude", "kns=native"],
}
SECONDS = 90


@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", OPTIONS)
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_nothing_is_found(backend, tool):
    command = [SANITIZER, "--tool", tool, *OPTIONS[tool], "--error-exitcode", "17"]
    command += [sys.executable, "-c", CALLS, backend]
    # From torch's cache tensors come in large blocks, and memcheck sees no step over the end of one.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    printed = done.stdout + done.stderr
    if "Device not supported" in printed:
        pytest.skip("compute-sanitizer does not support this device, or what virtualises it")
    assert done.returncode == 0, printed[-4000:]
