"""A launch of a Triton kernel with everything that it is given; knows no Triton."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from .triton_runtime import interpreting


@dataclass(frozen=True)
class Launch:
    """One kernel with everything that it is given.

    Attributes:
        kernel: A function of `triton.jit`.
        grid: How many programs.
        arguments: By name; the tensor `out_ptr` tells the device.
        num_warps: Warps of a program.
        num_stages: Steps that are loaded ahead.
    """

    kernel: Any
    grid: int
    arguments: dict[str, Any] = field(repr=False)
    num_warps: int = 4
    num_stages: int = 1

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told beside the arguments."""
        # Said explicitly, because Triton 3.9 announces another default for the fusion of a * b + c.
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    def run(self) -> None:
        """Put the kernel on the current stream of the device of `out_ptr`; nothing waits for it."""
        device = self.arguments["out_ptr"].device
        with torch.cuda.device(device) if device.type == "cuda" else _interpreter():
            self.kernel[(self.grid,)](**self.arguments, **self.options)


# The interpreter exchanges functions of `triton.language` while it runs a kernel: one at a time.
_INTERPRETER = threading.Lock()


def _interpreter() -> Any:
    return _INTERPRETER if interpreting() else nullcontext()
