"""What the norms' backend `cpu` shares: when it can run, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....core import dry_run, native
from .kernels import DTYPES, why_not_kernel

__all__ = ["DTYPES", "NormPlan", "why_not_norm", "writer"]


def why_not_norm(x: Tensor, result: torch.dtype, precision: str) -> str | None:
    """Return why the kernels cannot normalise `x` into this dtype, or None."""
    if x.device.type != "cpu":
        return f"the tensor is on {x.device}, the kernel runs on a CPU"
    return why_not_kernel(x, result, precision) or native.why_no_cpu()


class NormPlan:
    """A norm that is given addresses alone: `core.bind.Write`.

    Args:
        plan: Of the native module; its `run` takes the addresses of the result, of the frames, of a scale and
            a shift if it can have these, of weight and bias, and the number of threads.
        between: What stands for a scale and a shift that are not among the tensors of a call.
        latents: How many of those are read as they are behind the frames; the kernels read the others, the
            parameters, in float32.
    """

    def __init__(self, plan: Any, between: tuple[int, ...] = (), latents: int = 0) -> None:
        self._plan, self._between, self._read = plan, between, 1 + latents

    def __call__(self, out: Tensor, tensors: tuple[Any, ...]) -> bool:
        """Compute the norm of tensors like those of the plan."""
        places, kept = (), ()
        for tensor in tensors[self._read :]:
            if tensor is None:
                places += (0,)
                continue
            if tensor.dtype is not torch.float32 or not tensor.is_contiguous():
                tensor = tensor.detach().float().contiguous()
                kept += (tensor,)  # while its address is in use
            places += (tensor.data_ptr(),)
        read = tuple([t.data_ptr() for t in tensors[: self._read]])
        self._plan.run(out.data_ptr(), *read, *self._between, *places, torch.get_num_threads())
        return True


def writer(bind: Callable[[Any, Tensor, bool], NormPlan]) -> Callable[[Tensor, Any, str], None]:
    """Return the `write` of a backend that binds so; the tensors of its record come first."""

    def write(out: Tensor, args: Any, precision: str) -> None:
        if dry_run.current() is None:  # which has no addresses, and computes nothing
            bind(args, out, False)(out, [a for a in args if a is None or isinstance(a, Tensor)])

    return write
