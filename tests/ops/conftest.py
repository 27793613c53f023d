"""What the tests of the ops share: a CUDA module without a GPU, a Triton interpreter that is quick."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from causalvae_kernels.core import native
from causalvae_kernels.core.triton_runtime import interpreting
from tests.support.cuda_stand_in import OnTheHost


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter() -> None:
    """Each addition and multiplication of integers is done twice for the check: half of the time."""
    if interpreting():
        from triton.runtime import interpreter

        interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


@pytest.fixture(autouse=True)
def _checked_memory() -> Iterator[None]:
    """Every interpreted kernel is checked for accesses outside of its tensors, and for races of programs."""
    if not interpreting():
        yield
        return
    from tests.support.triton_memory import checked

    with checked():
        yield


@pytest.fixture
def strides(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The strides in width that the framework's `conv3d` is asked for, call by call."""
    asked, original = [], torch.nn.functional.conv3d

    def spy(x, weight, bias, stride, *others):
        asked.append(stride[2])
        return original(x, weight, bias, stride, *others)

    monkeypatch.setattr(torch.nn.functional, "conv3d", spy)
    return asked


@pytest.fixture(params=["90a", "80"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OnTheHost:
    """The stand-in for the CUDA module, for either kind of GPU."""
    stand_in = OnTheHost()
    monkeypatch.setattr(native, "cuda_module", lambda: stand_in)
    monkeypatch.setattr(native, "why_no_cuda", lambda device: None)
    monkeypatch.setattr(native, "cuda_arch", lambda device: request.param)
    monkeypatch.setattr(native, "current_stream", lambda device: (0, 7))
    return stand_in
