"""Running a VAE and comparing two runs under the tolerance rule."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from causalvae_kernels.models.hooks import type_name
from causalvae_kernels.parity import compare_round_trips, round_trip
from causalvae_kernels.workloads import make_video


def replaced_names(handle: Any) -> set[str]:
    """Return the names of the modules that run through our ops; the coders around them aside."""
    return {entry.name for entry in handle.report if entry.replaced and entry.reason != "runs coder"}


def assert_parity(
    reference: nn.Module,
    swapped: nn.Module,
    clip: Tensor,
    configure: Callable[[nn.Module], None] = lambda m: None,
    *,
    by_clip: bool = False,
) -> None:
    """Require encode and decode of `swapped` to be as near to float64 as those of `reference`, by the rule.

    `configure` is applied to a float64 copy of `reference`, so that the oracle tiles and slices alike;
    `by_clip` is that of `compare_round_trips`.
    """
    oracle = in_float64(reference)
    configure(oracle)
    got = round_trip(swapped, clip)
    for step, comparison in compare_round_trips(reference, oracle, clip, got, by_clip=by_clip):
        assert comparison.passed, f"{step}: {comparison}"


def in_float64(model: nn.Module) -> nn.Module:
    """Return a copy that computes in float64 all through: diffusers' `RMSNorm` takes its mean in float32."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if type_name(module) == "RMSNorm":
            module.forward = functools.partial(_rms_norm, module)
    return model


def _rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    if module.weight is not None:
        return type(module).forward(module, x)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.eps)


def clip_of(
    frames: int, height: int = 16, width: int = 24, batch: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return a small clip."""
    return make_video(frames, height, width, batch=batch, dtype=dtype)
