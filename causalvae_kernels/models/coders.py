"""What the rules for whole encoders and decoders share: when activations may overwrite one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..temporal import BufferPool


def wants_gradient(module: nn.Module, *given: Any) -> bool:
    """Whether a gradient would go through the module.

    Args:
        module: The coder.
        *given: What it is called with: tensors, or caches that hold some.
    """
    if not torch.is_grad_enabled():
        return False
    return any(tensor.requires_grad for tensor in (*tensors_in(given), *module.parameters()))


def tensors_in(cache: Any) -> Iterator[Tensor]:
    """Give the tensors of a nested cache."""
    if isinstance(cache, Tensor):
        yield cache
    elif isinstance(cache, (list, tuple, dict)):
        for part in cache.values() if isinstance(cache, dict) else cache:
            yield from tensors_in(part)


def draws(module: nn.Module) -> bool:
    """Whether dropout is on somewhere in a module: it draws in the layout that it sees."""
    return any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in module.modules())


def is_compiled(module: nn.Module) -> bool:
    """Whether calling the module runs what `module.compile()` made of it."""
    return getattr(module, "_compiled_call_impl", None) is not None


def pool_for(x: Tensor) -> BufferPool | None:
    """Return a pool for one run through a coder, or None where it has no use.

    On a GPU the framework's allocator keeps storage at hand by itself; autocast changes dtypes underway.
    """
    device = x.device.type
    return BufferPool() if device == "cpu" and not torch.is_autocast_enabled(device) else None
