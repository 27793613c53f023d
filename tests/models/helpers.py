"""Running a VAE and comparing two runs under the tolerance rule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from causalvae_kernels.parity import compare_round_trips, round_trip
from causalvae_kernels.workloads import make_video


def replaced_names(handle: Any) -> set[str]:
    """Return the names of the modules that run through our ops."""
    return {entry.name for entry in handle.report if entry.replaced}


def assert_parity(
    reference: nn.Module,
    swapped: nn.Module,
    clip: Tensor,
    configure: Callable[[nn.Module], None] = lambda m: None,
) -> None:
    """Require encode and decode of `swapped` to be as near to float64 as those of `reference`, by the rule.

    `configure` is applied to a float64 copy of `reference`, so that the oracle tiles and slices alike.
    """
    oracle = copy.deepcopy(reference).double()
    configure(oracle)
    for step, comparison in compare_round_trips(reference, oracle, clip, round_trip(swapped, clip)):
        assert comparison.passed, f"{step}: {comparison}"


def clip_of(
    frames: int, height: int = 16, width: int = 24, batch: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return a small clip."""
    return make_video(frames, height, width, batch=batch, dtype=dtype)
