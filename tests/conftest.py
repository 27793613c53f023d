"""What all tests share: the backends of this machine, models, and fresh seeds that a failure names."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from causalvae_kernels.core import env, native
from causalvae_kernels.core.triton_runtime import interpreting

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores among the processes of pytest-xdist: threads that wait for a core spin."""
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if workers:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(workers)))


def _native_backends() -> list[tuple[str, str | None]]:
    if native.why_no_cpu() is not None:
        return []
    return [("cpu", isa) for isa in native.cpu_module().supported_isas()]


BACKENDS: list[tuple[str, str | None]] = (
    [("triton", None)] if interpreting() else [("aten", None), *_native_backends()]
)


@pytest.fixture(params=BACKENDS, ids=lambda b: "-".join(filter(None, b)))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every backend but the reference; the native one once for each instruction set of this processor.

    With TRITON_INTERPRET=1 it is Triton alone, interpreted: `make test` runs the tests of the ops twice.
    """
    name, isa = request.param
    if isa:
        monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", isa)
    return name


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The dtypes of the arithmetic ops."""
    return request.param


@pytest.fixture
def seed(record_property: Callable[[str, Any], None]) -> int:
    """A fresh seed; it is printed when the test fails."""
    value = random.SystemRandom().randrange(2**31)
    record_property("seed", value)
    print(f"seed {value}")
    return value


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests choose backend and precision themselves."""
    for variable in env.TABLE:
        monkeypatch.delenv(variable.name, raising=False)


@pytest.fixture(autouse=True)
def _compilers_start_afresh(request: pytest.FixtureRequest) -> None:
    """A compiler keeps eight versions of a function, and all compiled modules of a swap are one function."""
    if "compile" in request.node.name and "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
