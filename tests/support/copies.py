"""Modes that count what operators copy."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from causalvae_kernels.core.op import call_of


class CountedElements(TorchDispatchMode):
    """Counts the elements that cat, pad, clone and copies write."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "causalvae_kernels":
            with self:  # look inside: a mode is off while an operator runs
                return call_of(func, args).run()
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", None)
        if packet in _COPIES and isinstance(out, torch.Tensor):
            self.elements += out.numel()
        return out


_COPIES = {getattr(torch.ops.aten, name) for name in ("cat", "constant_pad_nd", "clone", "copy_", "_to_copy")}


class Copies(TorchDispatchMode):
    """Counts the operators that only move data, of `least` elements and more."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.found = least, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("copy_", "cat", "clone", "constant_pad_nd", "repeat", "_to_copy", "reflection_pad3d"):
            if isinstance(out, torch.Tensor) and out.numel() >= self.least:
                self.found[name] += 1
        return out
