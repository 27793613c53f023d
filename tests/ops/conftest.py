"""What the tests of the ops share: an interpreter of Triton that does not look for overflows."""

from __future__ import annotations

import pytest

from causalvae_kernels.core.triton_runtime import interpreting


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter() -> None:
    """Each addition and multiplication of integers is done twice for the check: half of the time."""
    if interpreting():
        from triton.runtime import interpreter

        interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
