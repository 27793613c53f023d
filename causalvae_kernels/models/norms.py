"""A family's norms in the words of the norm ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..core.dry_run import is_plain_tensor
from ..temporal import FrameBuffer
from .swap import Link


@dataclass(frozen=True)
class NormOp:
    """A call of one of the norm ops, but for its input.

    Attributes:
        op: `ops.group_norm`, `ops.spatial_norm`, `ops.rms_norm` or `group_norm_frames`.
        arguments: What follows the input.
        options: Keywords.
        promotes: The factor whose dtype the result is promoted with, or None: it has the input's.
    """

    op: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    promotes: Tensor | None = None

    @property
    def reads(self) -> list[Tensor]:
        """The tensors that it reads beside its input."""
        return [a for a in self.arguments if isinstance(a, Tensor)]

    def dtype(self, x: Tensor) -> torch.dtype:
        """Return the dtype of the result for an input."""
        return x.dtype if self.promotes is None else torch.promote_types(x.dtype, self.promotes.dtype)

    def widened(self, x: Tensor) -> Tensor:
        """Return an input in the dtype of the result, which is the only one that the kernels write."""
        dtype = self.dtype(x)
        return x.to(dtype) if all(t.dtype == dtype for t in self.reads) else x

    def __call__(self, x: Tensor, **options: Any) -> Tensor:
        """Return the result for an input, in fresh memory."""
        return self.op(self.widened(x), *self.arguments, **self.options, **options)

    def write(self, buffer: FrameBuffer, x: Tensor) -> None:
        """Write the result for an input into the body of a buffer."""
        self.op(x, *self.arguments, out=buffer, **self.options)


def group_norm(norm: nn.GroupNorm, link: Link) -> NormOp:
    """Return an `nn.GroupNorm` as `ops.group_norm`."""
    arguments = (norm.num_groups, norm.weight, norm.bias)
    return NormOp(ops.group_norm, arguments, group_norm_options(norm, link))


def group_norm_options(norm: nn.GroupNorm, link: Link) -> dict[str, Any]:
    """Return the keywords of `ops.group_norm` and `ops.spatial_norm`."""
    return {"eps": norm.eps, **backend_options(link)}


def scaled_group_norm(norm: nn.GroupNorm, link: Link, scale: Tensor, shift: Tensor, x: Tensor) -> NormOp:
    """Return a group norm of `x` times `scale` plus `shift`, of latent resolution, as `ops.spatial_norm`."""
    # Under autocast what comes out of a convolution is narrower; the product is not.
    dtype = torch.promote_types(x.dtype, scale.dtype)
    scale, shift = scale.to(dtype), shift.to(dtype)
    arguments = (scale, shift, norm.num_groups, norm.weight, norm.bias)
    return NormOp(ops.spatial_norm, arguments, group_norm_options(norm, link), scale)


def rms_norm(gamma: Tensor, bias: Tensor | None, link: Link, eps: float = 0.0) -> NormOp:
    """Return an RMS norm over channels whose factor is `gamma` as `ops.rms_norm`; Wan's has no `eps`."""
    options = {"eps": eps, **backend_options(link)}
    return NormOp(ops.rms_norm, (gamma, bias), options, promotes=gamma)


def backend_options(link: Link) -> dict[str, Any]:
    """Return the keywords of every op."""
    return {"backend": link.backend, "precision": link.precision}


def takes(parameters: Iterable[Tensor | None], x: Tensor) -> bool:
    """Whether the norm ops take these parameters for `x`; otherwise the framework says what is wrong."""
    return x.numel() > 0 and takes_values(parameters, x.dtype)


def takes_values(parameters: Iterable[Tensor | None], dtype: torch.dtype) -> bool:
    """Whether the norm ops take these parameters for an input of this dtype."""
    allowed = (dtype, torch.float32) if dtype in (torch.bfloat16, torch.float16) else (dtype,)
    given = [p for p in parameters if p is not None]
    return all(is_plain_tensor(p) and p.dtype in allowed for p in given)


def takes_norms(norms: Iterable[nn.GroupNorm], x: Tensor) -> bool:
    """Whether the norm ops take the parameters of all these norms for `x`."""
    return all(takes((norm.weight, norm.bias), x) for norm in norms)
