"""The precision tiers, and which one holds: argument > `use_precision()` > environment > `high`.

* ``exact``: bit-identical to the reference module; its convolution call and its layout are kept.
* ``high``: reassociation and exact algebra, within the stated factor of the reference's own error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from . import env
from .checks import check_choice
from .errors import InvalidInput
from .setting import Setting

TIERS = ("exact", "high")

SETTING = Setting("causalvae_kernels_precision")


@contextmanager
def use_precision(tier: str) -> Iterator[None]:
    """Set the precision tier of every op called inside the context.

    Args:
        tier: "exact" or "high".

    Raises:
        InvalidInput: Another word was given.
    """
    check_choice("use_precision", "tier", tier, TIERS)
    with SETTING.hold(tier):
        yield


def resolve_precision(argument: str | None) -> str:
    """Return the tier that holds for a call with this `precision` argument (None or "": not given)."""
    if argument:
        check_choice("precision", "precision", argument, TIERS)
        return argument
    return SETTING.get() or env.PRECISION.get() or "high"


def why_not_exact(precision: str, computation: str) -> str | None:
    """Return why a kernel that sums in another order than the framework cannot serve this tier, or None.

    Args:
        precision: The tier.
        computation: What it computes, such as "convolution".
    """
    if precision != "exact":
        return None
    return (
        f"precision 'exact' asks for the bits of the framework's {computation}, and the kernel sums in "
        "another order"
    )


def autocast_dtype(x: object) -> torch.dtype | None:
    """Return the dtype to compute in, if autocast is on and would change that of `x`."""
    if not isinstance(x, Tensor) or x.is_meta or x.dtype == torch.float64:
        return None
    if not torch.is_autocast_enabled(x.device.type):
        return None
    return torch.get_autocast_dtype(x.device.type)


def check_no_autocast(op: str, x: Tensor) -> None:
    """Require that autocast would leave the dtype of `x` as it is: a destination has one already."""
    cast = autocast_dtype(x)
    if cast not in (None, x.dtype):
        raise InvalidInput(
            f"{op}: got out and {x.dtype} tensors under autocast to {cast}, expected no autocast; leave out "
            "away"
        )
