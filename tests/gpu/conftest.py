"""What the tests that need an NVIDIA GPU share: `make test-gpu`. Elsewhere their files are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from causalvae_kernels import explain

GPU_BACKENDS = ("aten", "triton", "cuda")


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    """The reference in float32, not in tf32: its error is what the tolerance is made of.

    What `flags` is not told it sets, `enabled` to False.
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        yield
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(params=GPU_BACKENDS)
def gpu_backend(request: pytest.FixtureRequest) -> str:
    """Every backend that runs on a GPU."""
    return request.param


def skip_unless_it_can(op: str, backend: str, *arguments: Any, **keywords: Any) -> None:
    """Skip with the backend's own sentence; `test_each_backend_runs` sees to it that this is no way out."""
    answer = explain(op, *arguments, **keywords, backend=backend)
    if answer.chosen != backend:
        pytest.skip(dict(answer.rows)[backend])
