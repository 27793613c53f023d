"""Further evaluations of a convolution's reference, each with its sums in another order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# How often the reference is evaluated, itself included.
REFERENCE_DRAWS = 4


def reference_draws(op: Callable[..., Tensor], call: dict[str, Any]) -> list[Tensor]:
    """Return what the reference gives for a call, in `REFERENCE_DRAWS` orders of its sums."""
    first = op(**call, backend="reference")
    draws = range(REFERENCE_DRAWS - 1)
    return [first, *(op(**_redrawn(call, draw), backend="reference")[: first.shape[0]] for draw in draws)]


def in_float64(op: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
    """Return the oracle of a call."""
    return op(**_mapped(call, lambda name, t: t.double()), backend="reference")


def _redrawn(call: dict[str, Any], draw: int) -> dict[str, Any]:
    """Return the same convolution, input channels in another order, in even draws with the batch twice.

    On a CPU `F.conv3d` takes another algorithm from a batch of 2 on (oneDNN's, also taken for large frames),
    whose float32 error is up to 3.2 times that of the one for a small single batch. Both are the reference.
    """
    order = torch.randperm(call["x"].shape[1], generator=torch.Generator().manual_seed(draw))
    copies = 2 - draw % 2

    def redraw(name: str, tensor: Tensor) -> Tensor:
        if name in ("x", "weight", "initial_state"):
            tensor = tensor[:, order]
        return torch.cat([tensor] * copies) if name in ("x", "initial_state", "residual") else tensor

    return _mapped(call, redraw)


def _mapped(call: dict[str, Any], change: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
    return {k: change(k, v) if isinstance(v, Tensor) else v for k, v in call.items()}
