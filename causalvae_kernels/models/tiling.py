"""`swap(vae, tiling="auto")`: in one piece wherever that fits, else in diffusers' tiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import dry_run, env, machine_memory
from ..core.packed import packed_size
from .hooks import why_hooked
from .pieces import has_tiling, in_one_piece, in_tiles
from .plan import STEPS, plan_step

TILINGS = ("as_is", "auto")


@contextmanager
def chosen(model: nn.Module, link: Any, step: str, x: object) -> Iterator[None]:
    """Tile or not inside of `with`, as the free memory allows for an input like `x`.

    What a shape needs is planned once and remembered in the link; how much is free is asked at every call.
    The user's setting holds where a plan would not: under a compiler, in a dry run, with gradients, and for a
    model with hooks, whose weights come and go.
    """
    if step not in STEPS or not _can_plan(model, x):
        yield
        return
    needed, packed = _needed(model, link, step, x)
    fits = needed + max(packed - packed_size(), 0) <= _budget(link, x.device)
    with in_one_piece(model) if fits else in_tiles(model):
        yield


def _can_plan(model: nn.Module, x: object) -> bool:
    return (
        isinstance(x, Tensor)
        and x.dim() == 5
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and dry_run.current() is None
        and has_tiling(model)
        and not (
            torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in model.parameters()))
        )
        and not any(why_hooked(module) for module in model.modules())
    )


def _needed(model: nn.Module, link: Any, step: str, x: Tensor) -> tuple[int, int]:
    """Return the peak in one piece and the packed weights, in bytes."""
    key = (step, tuple(x.shape), x.dtype, x.device, getattr(model, "use_slicing", False))
    if key not in link.needed:
        plan = plan_step(model, step, x.shape, device=x.device, available=0, tiled=False)
        link.needed[key] = plan.untiled, plan.packed
    return link.needed[key]


def _budget(link: Any, device: torch.device) -> int:
    if link.memory_budget is not None:
        return link.memory_budget
    given = env.MEMORY_MIB.get()
    return machine_memory.free(device) if given is None else int(given) * 2**20
