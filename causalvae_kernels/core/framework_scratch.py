"""What the framework's operators allocate beside their results, on a CPU.

Their fake kernels know sizes of results only. A convolution takes more than anything else: the scalar one
unfolds its input, oneDNN reorders input, weights and output into layouts of its own, by instruction set and
version. How much that is, is asked of oneDNN itself with tiny convolutions of the same channels and different
lengths, whose allocations either grow with the input, or with the output, or are weights and scratch; some
scratch grows with the input of one clip (a processor with AVX512-BF16 gathers it once for each thread).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .allocations import cpu_allocations, is_profiling
from .layout import is_channels_last_3d

Inside = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[Any, int]]
"""(operator, arguments, keywords) to (its result, the most bytes beside it and the arguments at a time)."""


def find(func: Any) -> Inside | None:
    """Return how an operator is run that allocates more than its result; None: it does not."""
    return _INSIDE.get(func)


def _convolution(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding")
    given = dict(zip((*names, "groups"), args, strict=False)) | kwargs
    x, weight = given["input"], given["weight"]
    if x.device.type != "cpu" or given["transposed"]:
        return func(*args, **kwargs), 0
    steps = tuple(_of_rank(given[name], weight.dim() - 2) for name in ("stride", "padding", "dilation"))
    with _disable_current_modes():
        sizes = (torch.empty((), dtype=t.dtype).expand(t.shape) for t in (x, weight))
        backend = torch._C._select_conv_backend(
            *sizes, None, *steps, False, [0] * len(steps[0]), given["groups"], None
        )
    return _convolved(x, weight, *steps, given["groups"], "Mkldnn" in str(backend))


def _onednn_convolution(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
    x, weight, _, padding, stride, dilation, groups = args
    steps = (_of_rank(step, weight.dim() - 2) for step in (stride, padding, dilation))
    return _convolved(x, weight, *steps, groups, True)


def _convolved(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    onednn: bool,
) -> tuple[Tensor, int]:
    kernel = weight.shape[2:]
    size = [
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    shape = (x.shape[0], weight.shape[0], *size)
    last = onednn and (_is_channels_last(x) or _is_channels_last(weight))
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(weight.dim(), last))
    if not onednn:
        copied = 0 if x.is_contiguous() else x.nbytes
        unfolds = math.prod(kernel) > 1 or max(stride) > 1 or any(padding)
        return out, copied + (out.nbytes // weight.shape[0] * math.prod(weight.shape[1:]) if unfolds else 0)
    formats = _is_channels_last(x), _is_channels_last(weight)
    most = max(math.isqrt(_FEW_PRODUCTS // weight.numel()), _FEW_PIXELS)
    small = tuple(min(length, most) for length in x.shape[2:][-2:])
    asked = (x.dtype, tuple(weight.shape), *formats, small, stride, padding, dilation, groups)
    if is_profiling():  # and a profiler cannot be asked while it works for somebody else
        events = _unknown(weight.nbytes)
    else:
        events = _onednn_events(*asked, torch.get_num_threads())
    return out, _peak(events, x.nbytes, out.nbytes, max(x.shape[0], 1)) - out.nbytes


class _Event(NamedTuple):
    """An allocation, or its release: bytes per byte of the input, per byte of the output, and others.

    `clip` is bytes per byte of the input of one clip, however many there are.
    """

    input: float = 0.0
    output: float = 0.0
    constant: float = 0.0
    clip: float = 0.0


def _peak(events: Sequence[_Event], input_bytes: int, output_bytes: int, batch: int) -> int:
    live = peak = 0.0
    for event in events:
        live += (event.input + event.clip / batch) * input_bytes + event.output * output_bytes
        live += event.constant
        peak = max(peak, live)
    return max(round(peak), output_bytes)


# How large the frames are that oneDNN is asked with: as they are, up to so many rows and columns or so many
# multiplications (0.02 s). What follows the length of a row is too little to matter for longer ones.
_FEW_PIXELS = 16
_FEW_PRODUCTS = 2**28


@functools.lru_cache(maxsize=4096)
def _onednn_events(
    dtype: torch.dtype,
    weight_shape: tuple[int, ...],
    x_last: bool,
    weight_last: bool,
    pixels: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    threads: int,
) -> tuple[_Event, ...]:
    """Return what oneDNN allocates and releases in turn, from convolutions of one, three and five frames."""
    with _disable_current_modes(), torch.no_grad():
        rank = len(weight_shape)
        weight = torch.zeros(weight_shape, dtype=dtype).contiguous(memory_format=_format(rank, weight_last))
        bias = torch.zeros(weight_shape[0], dtype=dtype)
        reach = dilation[0] * (weight_shape[2] - 1) + 1 - 2 * padding[0] if rank == 5 else 0
        runs = []
        for count in (1, 3, 5):
            frames = ((count - 1) * stride[0] + max(reach, 1),) if rank == 5 else ()
            batch = 1 if rank == 5 else count
            channels = weight_shape[1] * groups
            sides = zip(dilation[-2:], weight_shape[2:][-2:], strict=True)
            least = [d * (k - 1) + 1 for d, k in sides]
            rows = [max(p, n) for p, n in zip((*pixels, *pixels)[-len(least) :], least, strict=True)]
            x = torch.zeros((batch, channels, *frames, *rows), dtype=dtype)
            x = x.contiguous(memory_format=_format(rank, x_last))
            arguments = (x, weight, bias, padding, stride, dilation, groups)
            y = torch.mkldnn_convolution(*arguments)
            runs.append(
                (x.nbytes, y.nbytes, cpu_allocations(lambda a=arguments: torch.mkldnn_convolution(*a)))
            )
    inputs, outputs, allocations = zip(*runs, strict=True)
    if len(set(map(len, allocations))) > 1:
        return _unknown(weight.nbytes)
    grows_with = "clip" if rank == 5 else "input"  # images are counted by the batch
    return tuple(_event(each, inputs, outputs, grows_with) for each in zip(*allocations, strict=True))


def _event(
    allocated: Sequence[int], inputs: Sequence[int], outputs: Sequence[int], grows_with: str
) -> _Event:
    """Return the rule of an allocation in three convolutions whose inputs and outputs take these bytes."""
    if allocated[0] == allocated[2]:
        return _Event(constant=allocated[2])
    if _are_proportional(allocated, outputs):
        return _Event(output=allocated[2] / outputs[2])
    if _are_proportional(allocated, inputs):
        return _Event(input=allocated[2] / inputs[2])
    if allocated[2] - allocated[1] == allocated[1] - allocated[0]:
        slope = (allocated[2] - allocated[0]) / (inputs[2] - inputs[0])
        return _Event(constant=allocated[0] - slope * inputs[0], **{grows_with: slope})
    return _Event(constant=allocated[2])  # scratch that grows to some size and no further


def _are_proportional(a: Sequence[int], b: Sequence[int]) -> bool:
    return all(a[0] * y == x * b[0] for x, y in zip(a, b, strict=True))


def _unknown(weight_bytes: int) -> tuple[_Event, ...]:
    """Return a guess on the large side: every tensor is reordered once."""
    return (_Event(input=1, output=2, constant=weight_bytes),)


def _nearest(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
    """Nearest-neighbour upsampling copies an input that is dense in no layout."""
    result, x = func(*args, **kwargs), args[0]
    dense = x.is_contiguous() or x.is_contiguous(memory_format=_format(x.dim(), True))
    return result, 0 if dense else x.nbytes


def _of_rank(numbers: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(numbers) * rank if len(numbers) == 1 else tuple(numbers)


def _is_channels_last(x: Tensor) -> bool:
    if x.dim() == 5:
        return is_channels_last_3d(x)
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _format(rank: int, last: bool) -> torch.memory_format:
    if last and rank in (4, 5):
        return torch.channels_last_3d if rank == 5 else torch.channels_last
    return torch.contiguous_format


_aten = torch.ops.aten
_INSIDE: dict[Any, Inside] = {
    _aten.convolution.default: _convolution,
    _aten.mkldnn_convolution.default: _onednn_convolution,
    _aten.upsample_nearest2d.default: _nearest,
    _aten.upsample_nearest3d.default: _nearest,
    _aten._upsample_nearest_exact2d.default: _nearest,
    _aten._upsample_nearest_exact3d.default: _nearest,
}
