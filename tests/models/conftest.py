"""Models that the swap's tests share; every test gets its own copy."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import pytest
import torch

from causalvae_kernels.models import conv
from causalvae_kernels.workloads import odd_cogvideox_config, small_cogvideox_config
from tests.support.moulds import Mould
from tests.support.seeds import seeded

diffusers = pytest.importorskip("diffusers")
logging.getLogger("diffusers").setLevel(logging.ERROR)

CONFIGS = {"small": small_cogvideox_config, "odd": odd_cogvideox_config}


# One family for each mechanism: blocks in one pool, chunks with a cache, masks, a decoder that looks ahead.
MECHANISMS = ("CogVideoX", "Wan2.1", "HunyuanVideo", "LTX0.9.5", "2.1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave costly tests of other families than the mark names, or `MECHANISMS`, to `make test-all`."""
    for item in items:
        callspec, costly = getattr(item, "callspec", None), item.get_closest_marker("costly")
        if callspec is not None and costly is not None:
            families = costly.args or MECHANISMS
            if callspec.params.get("name", families[0]) not in families:
                item.add_marker("exhaustive")


@functools.cache
def _mould(name: str) -> Mould:
    with seeded(7):
        return Mould(diffusers.AutoencoderKLCogVideoX(**CONFIGS[name]()).eval().requires_grad_(False))


def cogvideox(name: str = "small", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Return a fresh copy of a model."""
    return _mould(name).cast().to(dtype)


@pytest.fixture
def build() -> Callable[..., torch.nn.Module]:
    """Return a function that gives a fresh copy of a model: build("small", torch.bfloat16)."""
    return cogvideox


@pytest.fixture(autouse=True)
def _nothing_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are small on purpose; without this the original would run in half precision."""
    monkeypatch.setattr(conv, "SMALL", 0)


@pytest.fixture(autouse=True)
def _averages_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no `avg_pool3d` for it on a CPU: without this Cosmos itself could not encode."""
    average = torch.nn.functional.avg_pool3d

    def in_float32(x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return average(wide, *args, **kwargs).to(x.dtype)

    monkeypatch.setattr(torch.nn.functional, "avg_pool3d", in_float32)


@pytest.fixture(params=CONFIGS)
def config_name(request: pytest.FixtureRequest) -> str:
    """The small configuration, and one whose channel counts no vector divides."""
    return request.param
