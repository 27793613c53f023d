"""A family's causal convolution in the words of `causal_conv3d`, and calling it from a swapped model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.dry_run import is_plain_tensor
from ..core.layout import is_channels_last_3d, memory_format_of
from ..core.precision import resolve_precision
from ..core.selection import requested_backend
from ..ops import causal_conv3d
from ..ops.causal_conv3d import reads_two_sources
from ..temporal import FrameBuffer
from .swap import Link

NO_HALO = (0, 0, 0, 0)


@dataclass(frozen=True)
class Conv:
    """What a family's convolution module computes.

    Attributes:
        weight: Shape (Cout, Cin, kT, kH, kW).
        bias: Shape (Cout,), or None.
        stride: In time, height and width.
        temporal_mode: What stands before the first frame, as in `causal_conv3d`.
        spatial_mode: What stands around a frame, as in `causal_conv3d`.
        streams: Whether the next chunk needs the last kT - 1 frames of this one.
        tail_room: How many of the kT - 1 frames of padding stand behind the last frame and repeat it.
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, int, int] = (1, 1, 1)
    temporal_mode: str = "replicate"
    spatial_mode: str = "zeros"
    streams: bool = False
    tail_room: int = 0

    @property
    def head_room(self) -> int:
        """How many frames a producer of the input leaves free in front of it."""
        return 0 if self.temporal_mode == "valid" else self.weight.shape[2] - 1 - self.tail_room

    @property
    def halo(self) -> tuple[int, int, int, int]:
        """How many pixels a producer leaves free around a frame: zeros cost no backend a copy."""
        if self.spatial_mode in ("zeros", "valid"):
            return NO_HALO
        height, width = ((size - 1) // 2 for size in self.weight.shape[3:])
        return height, height, width, width

    def options(self, link: Link) -> dict[str, Any]:
        """Return the keywords of `causal_conv3d`."""
        return {
            "stride": self.stride,
            "temporal_mode": self.temporal_mode,
            "spatial_mode": self.spatial_mode,
            "backend": link.backend,
            "precision": link.precision,
        }


def convolve(
    conv: Conv,
    link: Link,
    x: Tensor | FrameBuffer,
    state: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Convolve, add the residual; return the output and, where the convolution streams, the new state."""
    if conv.tail_room and not isinstance(x, FrameBuffer):
        x, conv = _with_room(conv, x)
    options = {
        **conv.options(link),
        "initial_state": state,
        "residual": residual,
        "return_final_state": conv.streams,
    }
    result = causal_conv3d(x, conv.weight, conv.bias, **options)
    return result if conv.streams else (result, None)


def _with_room(conv: Conv, x: Tensor) -> tuple[Tensor | FrameBuffer, Conv]:
    """Return the frames with room in front and behind, for a convolution that looks ahead."""
    head, tail = conv.head_room, conv.tail_room
    if may_write(x):
        buffer = FrameBuffer.empty(
            x.shape,
            head_room=head,
            halo=conv.halo,
            tail_room=tail,
            dtype=x.dtype,
            device=x.device,
            memory_format=memory_format_of(x),
        )
        buffer.body.copy_(x)
        return buffer, conv
    x = torch.cat([*[x[:, :, :1]] * head, x, *[x[:, :, -1:]] * tail], dim=2)
    return x, replace(conv, temporal_mode="valid", tail_room=0)


def needs_no_room(conv: Conv, link: Link, x: Tensor, *, first: bool = True) -> bool:
    """Whether the convolution of something like `x` reads its past where it lies, not in front of `x`.

    Args:
        conv: The convolution.
        link: Of the swap.
        x: As large as its input.
        first: Whether the video begins with `x`: there is no state.
    """
    # Of a state, only its size matters here.
    state = None if first or not conv.head_room else x[:, :, :1].expand(-1, -1, conv.head_room, -1, -1)
    return reads_two_sources(x, conv.weight, conv.bias, initial_state=state, **conv.options(link))


def may_write(*tensors: Tensor | None) -> bool:
    """Whether results may be written in place: no gradient would be lost and no compiler is tracing."""
    return not torch.compiler.is_compiling() and not (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    )


def added(y: Tensor, other: Tensor) -> Tensor:
    """Return the sum, where possible written over `y`, which is nobody else's."""
    # Under autocast the convolution's result may be of a lower dtype, and the sum is not.
    return y.add_(other) if y.dtype == other.dtype and may_write(y, other) else y + other


# Elements of an input whose copies cost less than the Python around an op, on two Zen 4 cores: CogVideoX
# encoding 8x32x32 in bfloat16 with everything replaced runs at 0.81 of the original's speed, with this limit
# at 0.96; 9x64x64 at 1.15 and 1.21.
SMALL = 2**18


def is_small(link: Link, x: Tensor, elements: int | None = None) -> bool:
    """Whether the original is quicker: a small input, and a convolution that would be the same.

    In float32 the tier `high` is quicker at any size, because `aten` chooses oneDNN where F.conv3d does not.

    Args:
        link: Of the swap.
        x: The input.
        elements: Of the largest activation, for more than one module; default: of `x`.
    """
    elements = x.numel() if elements is None else elements
    if elements >= SMALL or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if x.dtype == torch.float32 and resolve_precision(link.precision) != "exact":
        return False
    return requested_backend(link.backend)[0] == "auto"


def leaves(link: Link, x: Tensor) -> bool:
    """Whether the original of one module runs: a small input, but not in channels last, or no frames at all.

    In channels last it is part of a coder that runs as a whole: the original would give another layout, and
    the framework's group norm loses digits there.
    """
    return x.numel() == 0 or (is_small(link, x) and not is_channels_last_3d(x))


def why_conv3d_left(
    conv: nn.Module, padding: Sequence[int], padding_modes: Sequence[str] = ("zeros",)
) -> str | None:
    """Return why an `nn.Conv3d` is not what `causal_conv3d` computes, or None.

    Args:
        conv: The convolution; or an `nn.Conv2d`, which is one of a single frame.
        padding: What its own `padding` is, if the module around it was left as it was built.
        padding_modes: What its own `padding_mode` may be.
    """
    if any(d != 1 for d in conv.dilation):
        return f"dilation is {conv.dilation}; the module pads time as if it were 1"
    if any(k % 2 == 0 for k in conv.kernel_size[-2:]) or not all(s in (1, 2) for s in conv.stride):
        return f"kernel size {conv.kernel_size} with stride {conv.stride} is not one that causal_conv3d takes"
    if conv.groups != 1 or conv.padding_mode not in padding_modes:
        return f"groups={conv.groups}, padding_mode={conv.padding_mode!r} is not what causal_conv3d does"
    if tuple(conv.padding) != tuple(padding):
        return f"padding is {conv.padding}, the module was built with {tuple(padding)}"
    return why_weight_left(conv)


def why_conv2d_left(conv: nn.Module, stride: int, padding: int) -> str | None:
    """Return why an `nn.Conv2d` is not the one behind a change of resolution, or None.

    Args:
        conv: The convolution.
        stride: What the resampling op has.
        padding: What the module around it leaves to the convolution.
    """
    found = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    expected = ((3, 3), (stride, stride), (padding, padding), (1, 1), 1, "zeros")
    if found != expected:
        return f"its convolution is {conv}, the rule is for {expected}"
    return why_weight_left(conv)


def why_weight_left(conv: nn.Module) -> str | None:
    """Weights of other types (quantised, distributed) bring their own rules for calling a convolution."""
    if is_plain_tensor(conv.weight) and (conv.bias is None or is_plain_tensor(conv.bias)):
        return None
    return f"its weight is a {type(conv.weight).__name__}"
