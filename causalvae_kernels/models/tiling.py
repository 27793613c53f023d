"""`swap(vae, tiling="auto")`: in one piece wherever that fits, else in diffusers' tiles."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ..core import dry_run, env, machine_memory
from ..core.errors import InvalidInput
from ..core.packed import packed_size
from .fingerprint import frozen, setting_names
from .hooks import why_hooked
from .pieces import has_tiling, in_one_piece, in_tiles
from .plan import STEPS, MemoryPlan, mib, plan_step

TILINGS = ("as_is", "auto")


def model_for(model: nn.Module, link: Any, step: str, x: object) -> nn.Module:
    """Return a clone of the model that tiles or not, as the free memory allows for an input like `x`.

    What a shape needs is planned once and remembered in the link; how much is free is asked at every call.
    The model itself, with the user's setting, is returned where a plan would not hold: under a compiler, in a
    dry run, with gradients, for a model with hooks, whose weights come and go, and where planning fails.

    Raises:
        InvalidInput: One piece does not fit and tiling, as it is set, does not give the same shape.
    """
    if step not in STEPS or not _can_plan(model, x):
        return model
    plan = _planned(model, link, step, x, tiled=False)
    if plan is None:
        return model
    budget = _budget(link, x.device)
    if plan.untiled + max(plan.packed - packed_size(), 0) <= budget:
        return in_one_piece(model)
    plan = _planned(model, link, step, x, tiled=True)
    if plan is None:
        return model
    if plan.tiled is None:
        raise InvalidInput(
            f"{step}: an input of shape {plan.shape} takes {mib(plan.untiled + plan.packed)} MiB in one "
            f"piece, of {mib(budget)} that may be taken, and it cannot be tiled: "
            f"{plan.tiled_unsupported_reason}; "
            'expected other tiles (enable_tiling), a larger memory_budget, a smaller input, or tiling="as_is"'
        )
    return in_tiles(model)


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


def _planned(model: nn.Module, link: Any, step: str, x: Tensor, *, tiled: bool) -> MemoryPlan | None:
    """Return the plan of a call, made once; None, after one warning, where it cannot be made."""
    key = (step, tuple(x.shape), x.dtype, x.device, tiled, _settings(model))
    if key not in link.plans:
        try:
            plan = plan_step(model, step, x.shape, dtype=x.dtype, device=x.device, available=0, tiled=tiled)
        except InvalidInput as error:
            plan = None
            _warn_once(link, error)
        link.plans[key] = plan
    return link.plans[key]


def _settings(model: nn.Module) -> Hashable:
    """Return what is set on the model, such as the size of tiles; plans cover `use_tiling` on and off."""
    settings = ((name, frozen(model.__dict__[name])) for name in setting_names(model))
    return tuple(item for item in settings if item[0] != "use_tiling")


def _warn_once(link: Any, error: InvalidInput) -> None:
    if None not in link.plans.values():
        warnings.warn(
            f'tiling="auto": calls that cannot be planned run as the model is set. {error}', stacklevel=5
        )


def _budget(link: Any, device: torch.device) -> int:
    if link.memory_budget is not None:
        return link.memory_budget
    given = env.MEMORY_MIB.get()
    # What is kept for the next call is what that call will use.
    return machine_memory.free(device) + link.coders.kept if given is None else int(given) * 2**20
