"""What all tests share: seeds from the test's id, the backends of this machine, and which cases are quick."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from causalvae_kernels.core import env
from causalvae_kernels.core.op import all_ops
from tests.support.backends import BACKENDS, BEST, DTYPES, is_best, words_for
from tests.support.seeds import seed_everything, seed_of

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("fresh", deadline=None, database=None, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--seed`: another number draws other random inputs, the same number the same ones."""
    parser.addoption("--seed", type=int, default=0, help="number of the run that random inputs come from")


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores among the processes of pytest-xdist: threads that wait for a core spin."""
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if workers:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(workers)))
    run = config.getoption("--seed")
    hypothesis.settings.load_profile("fresh" if run else "fixed")
    if run and config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = run


def pytest_report_header(config: pytest.Config) -> str:
    """Say which run this is: `pytest --seed N` repeats it."""
    return f"random inputs: --seed {config.getoption('--seed')}"


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Keep the garbage collector away from what stays to the end: modules, and the items of all tests."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make test-all` what other instruction sets than the best one, or other backends, repeat."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        backend = None if callspec is None else callspec.params.get("backend")
        if not isinstance(backend, tuple):
            continue
        repeats = not is_best(backend) and item.get_closest_marker("every_instruction_set") is None
        if repeats or (backend != BEST and item.get_closest_marker("one_backend") is not None):
            item.add_marker("exhaustive")


@pytest.fixture(params=BACKENDS, ids=words_for)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every backend but the reference; the native one once for each instruction set of this processor.

    With TRITON_INTERPRET=1 it is Triton alone, interpreted.
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
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test."""
    return seed_of(request.node.nodeid, request.config.getoption("--seed"))


@pytest.fixture(autouse=True)
def _seeded(seed: int) -> None:
    """What a test draws without a seed depends on its id, not on the tests before it."""
    seed_everything(seed)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests choose backend and precision themselves, and see no measurement of the user's."""
    for variable in env.TABLE:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv(env.CACHE.name, str(tmp_path_factory.getbasetemp() / "no-measurements"))


@pytest.fixture(autouse=True)
def _nothing_is_bound() -> None:
    """What a test replaces before its first call, backends or measurements, decides how that call runs."""
    for op in all_ops():
        op.bindings.forget()


@pytest.fixture(autouse=True)
def _compilers_start_afresh(request: pytest.FixtureRequest) -> None:
    """A compiler keeps eight versions of a function, and all compiled modules of a swap are one function."""
    if "compile" in request.node.name and "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
