"""Where the time of a run goes: convolutions, norms, copies, by a clock around every operator.

The clock costs Python for each operator, so the total is that of a run without it; what the operators do not
account for is the rest: Python, checks, the dispatcher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.op import NAMESPACE, call_of
from .hollow_run import COMPOSITE, Operator, is_composite, is_view
from .timing import percentile
from .traffic import ALLOCATE

# In the order in which they are drawn.
GROUPS = ("convolution", "resampling", "norm", "copy", "elementwise", "rest")
_CONVOLUTIONS = ("convolution", "mkldnn_convolution", "addmm", "mm", "bmm", "baddbmm", "causal_conv3d")
_COPIES = ("copy_", "_to_copy", "clone", "cat", "constant_pad_nd", "index_select", "causal_pad3d")
_RESAMPLING = ("upsample", "downsample", "avg_pool", "_unsafe_index")


def time_by_group(fn: Callable[[], object], rounds: int = 1) -> dict[str, float]:
    """Return the milliseconds that each of `GROUPS` but the rest takes: medians of a few runs.

    Args:
        fn: What is timed, on a CPU, without gradients.
        rounds: How often, at least once.
    """
    found = []
    for _ in range(rounds):
        with torch.no_grad(), _Clock() as clock:
            fn()
        found.append(clock.ms)
    return {group: percentile([ms[group] for ms in found], 50) for group in GROUPS[:-1]}


def with_rest(by_group: dict[str, float], total_ms: float) -> dict[str, float]:
    """Return the groups with the rest; together they take `total_ms`.

    Args:
        by_group: What `time_by_group` gave. Where that is more than the total, the clocked runs were slower:
            the shares are kept, and there is no rest.
        total_ms: Time of a run without the clock.
    """
    clocked = sum(by_group.values())
    scale = min(total_ms / clocked, 1.0) if clocked else 1.0
    scaled = {group: scale * ms for group, ms in by_group.items()}
    return {**scaled, GROUPS[-1]: max(total_ms - clocked, 0.0)}


class _Clock(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ms = dict.fromkeys(GROUPS[:-1], 0.0)

    def __torch_dispatch__(
        self, func: Operator, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count its time; those that are made of others are taken apart."""
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if func.namespace == NAMESPACE:
            call = call_of(func, args)
            if call.choose().moves is None:
                with self:
                    return call.run()
            return self._timed(group_of(name, call.args), call.run, (), {})
        if is_composite(func):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        if is_view(func) or name in ALLOCATE:
            return func(*args, **kwargs)
        return self._timed(group_of(name, args), func, args, kwargs)

    def _timed(
        self, group: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        begin = time.perf_counter()
        result = fn(*args, **kwargs)
        self.ms[group] += (time.perf_counter() - begin) * 1e3
        return result


def group_of(name: str, args: Sequence[Any]) -> str:
    """Return the group of an operator.

    A kernel of one frame and several pixels, or of no frames at all, is that of an up- or downsampler: the
    models have it nowhere else.

    Args:
        name: Without namespace and overload.
        args: What it reads, and how; of an operator of ours its record.
    """
    plain = name.rstrip("_")
    if plain in _CONVOLUTIONS:
        return "resampling" if "conv" in plain and _is_of_one_frame(args) else "convolution"
    if plain.startswith(_RESAMPLING):
        return "resampling"
    if "norm" in plain:
        return "norm"
    return "copy" if name in _COPIES or plain in _COPIES else "elementwise"


def _is_of_one_frame(args: Sequence[Any]) -> bool:
    kernel = tuple(args[1].shape[2:])  # of the weights, behind the frames
    return len(kernel) == 2 or (kernel[0] == 1 and max(kernel[1:]) > 1)
