"""What encoders and decoders that run as a whole share: who else can see an activation, and its layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..core.layout import memory_format_of
from ..core.op import explain
from .hooks import is_plain
from .swap import Link, run


def wants_gradient(module: nn.Module, given: Iterable[Tensor]) -> bool:
    """Whether a gradient will go back through what a coder computes from these tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*given, *module.parameters()))


def draws(module: nn.Module) -> bool:
    """Whether dropout is on somewhere in a module: it draws in the layout that it sees."""
    return any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in module.modules())


def is_bypassable(module: nn.Module) -> bool:
    """Whether calling a module would do nothing else than what its class or our rule says."""
    return is_plain(module, run) and getattr(module, "_compiled_call_impl", None) is None


def samplers(block: nn.Module) -> Iterable[nn.Module]:
    """Return the up- or downsamplers at the end of a block."""
    return getattr(block, "upsamplers", None) or getattr(block, "downsamplers", None) or ()


def group_norm_format(conv: nn.Module, num_groups: int, link: Link, sample: Tensor) -> torch.memory_format:
    """Return the layout of all activations: channels_last_3d wherever the group norms are good at it.

    On a CPU those are ours: the framework's takes a copy. Decoding with CogVideoX-2b's widths, 3 latents of
    12x18, two Zen 4 cores: 3.90 s in the contiguous layout and 3.62 s in this one, bfloat16 3.37 and 2.94 s.

    Args:
        conv: The coder's first `nn.Conv3d`.
        num_groups: Of a norm of its output.
        link: Of the swap.
        sample: The coder's input.
    """
    shape = (sample.shape[0], conv.out_channels, *sample.shape[2:])
    last = norms_format(shape, num_groups, link, sample.device, sample.dtype)
    return memory_format_of(conv.weight) if last is None else last


def norms_format(
    shape: Sequence[int], num_groups: int, link: Link, device: torch.device, dtype: torch.dtype
) -> torch.memory_format | None:
    """Return channels_last_3d where group norms of this shape are good at it, else None."""
    last = torch.channels_last_3d
    if device.type == "cuda":
        return last
    if device.type == "cpu":
        example = torch.empty(tuple(shape), dtype=dtype, device=device, memory_format=last)
        choice = {"backend": link.backend, "precision": link.precision}
        if explain("group_norm", example, num_groups, **choice).chosen == "cpu":
            return last
    return None
