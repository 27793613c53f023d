"""The backends that can run here, and the instruction sets of the native one."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels.core import native
from causalvae_kernels.core.backend import Backend
from causalvae_kernels.core.op import Op
from causalvae_kernels.core.triton_runtime import interpreting

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Param = tuple[str, str | None]
"""A backend's name, and the instruction set for "cpu"."""


def _native_backends() -> list[Param]:
    if native.why_no_cpu() is not None:
        return []
    return [("cpu", isa) for isa in native.cpu_module().supported_isas()]


BACKENDS: list[Param] = [("triton", None)] if interpreting() else [("aten", None), *_native_backends()]
NAMES: list[str] = sorted({name for name, _ in BACKENDS})


BEST: Param = next((backend for backend in BACKENDS if backend[0] == "cpu"), BACKENDS[0])
"""Native, of the best instruction set of this processor; where that is not there, the first one."""


def is_best(backend: Param) -> bool:
    """Tell whether this is no native backend, or that of the best instruction set of this processor."""
    return backend[0] != "cpu" or backend == BEST


def words_for(backend: Param) -> str:
    """Return the id of a backend in the name of a test."""
    return "-".join(filter(None, backend))


def replace_backend(monkeypatch: pytest.MonkeyPatch, op: Op, backend: Backend) -> None:
    """Put a backend in the place of the one of its name, for calls that are bound already as well."""
    monkeypatch.setitem(op.backends, backend.name, backend)
    op.bindings.forget()
