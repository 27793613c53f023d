"""What a convolution module computes, found by running it: for classes that nobody wrote rules for.

A twin of the module, with the same settings, random weights and no hooks, convolves a few random pixels in
float64. Where its outputs are those of `causal_conv3d` with one choice of modes, for short and longer clips,
and nothing about it has changed by running, the module computes that and nothing else.
"""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import FLOAT_DTYPES
from ..ops import causal_conv3d
from ..ops.causal_conv3d.spec import SPATIAL_MODES, TEMPORAL_MODES, output_size

# What nn.Module keeps on every instance, and what hooks hang on it: no settings of the module.
_INTERNAL = frozenset(nn.Module().__dict__) | {"forward", "_old_forward", "_hf_hook", "_diffusers_hook"}
_SIMPLE = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)
# The same sum in another order in float64 and float32; another padding makes a difference of order 1.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_FEW_CHANNELS = 8


@dataclass(frozen=True)
class Modes:
    """How a convolution pads, in the words of `causal_conv3d`.

    Attributes:
        temporal: What stands before the first frame.
        spatial: What stands around a frame.
    """

    temporal: str
    spatial: str


def setting_names(module: nn.Module) -> Iterator[str]:
    """Give the names of the attributes that are a module's own: no weights, children or hooks."""
    return (name for name in module.__dict__ if name not in _INTERNAL)


def frozen(value: Any) -> Hashable:
    """Return a setting as something to compare, or `Opaque`: an object that may hold anything."""
    if type(value) in _SIMPLE:
        return value
    if isinstance(value, (tuple, list)):
        return tuple([frozen(item) for item in value])
    if isinstance(value, _FUNCTIONS):
        return f"{value.__module__}.{value.__qualname__}"
    return Opaque(type(value).__name__)


@dataclass(frozen=True)
class Opaque:
    """An attribute that says nothing about a module.

    Attributes:
        type_name: Of the value.
    """

    type_name: str


def probe(module: nn.Module, conv: nn.Module) -> Modes | str:
    """Find out which `causal_conv3d` a module computes.

    Args:
        module: The module; its `forward` takes the frames.
        conv: The `nn.Conv3d` that is the module, or its only child.

    Returns:
        The modes; or a sentence that says what is in the way.
    """
    for part in dict.fromkeys((module, conv)):
        for name in setting_names(part):
            found = _opaque_in(frozen(part.__dict__[name]))
            if found is not None:
                return f"its attribute {name} holds a {found.type_name}, which may be a state"
    with _aside():
        for dtype in _TOLERANCE:
            try:
                return _Probe(module, conv, dtype).run()
            except _Unlike as unlike:
                return str(unlike)
            except Exception as error:  # whatever a class of somebody else's raises
                words = f"{type(error).__name__}: {error}"
        return f"its forward, called with frames alone, fails with {' '.join(words.split())[:200]}"


def _opaque_in(value: Hashable) -> Opaque | None:
    if isinstance(value, Opaque):
        return value
    if isinstance(value, tuple):
        return next((found for item in value if (found := _opaque_in(item))), None)
    return None


@contextmanager
def _aside() -> Iterator[None]:
    """Run without a trace: no gradient, no autocast, the generators as before."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        yield


class _Unlike(Exception):
    """The module computes something else; the message is a sentence about it."""


class _Probe:
    """The twin of a module and the clips that it is run on, in one dtype."""

    def __init__(self, module: nn.Module, conv: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(7)
        self.own_dtype = conv.weight.dtype
        self.module = _twin(module, self._random)
        self.conv = self.module if conv is module else next(iter(self.module._modules.values()))
        self.weight, self.bias = self.conv.weight, self.conv.bias
        kernel, dilation = self.conv.kernel_size, self.conv.dilation
        self.span, height, width = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
        # Larger than any halo, and no square, so that height and width cannot be mixed up.
        self.pixels = (height + 2, width + 3)

    def run(self) -> Modes:
        """Return the modes.

        Raises:
            _Unlike: It is no `causal_conv3d`.
        """
        long = self._clip(self.span + 3)
        before = self._state()
        first = self._output(long)
        after = self._state()
        changed = [name for name in after if after[name] != before.get(name)]
        if changed:
            raise _Unlike(f"its forward changes {', '.join(changed)}: it keeps a state between calls")
        candidates = [modes for modes in _all_modes() if self._agrees(first, long, modes, few=True)]
        candidates = [modes for modes in candidates if self._agrees(first, long, modes)]
        if not candidates:
            raise _Unlike(self._unlike(first, long))
        for frames in sorted({1, 2, self.span + 1, self.span + 2}):
            clip = self._clip(frames, batch=1 + (frames == 2))
            if frames <= self.span and candidates[0].temporal == "valid":
                continue  # too short without padding, for both
            output = self._output(clip)
            candidates = [modes for modes in candidates if self._agrees(output, clip, modes)]
            if not candidates:
                raise _Unlike(f"with {frames} frames it computes something else than with {long.shape[2]}")
        if not _close(self._output(long), first):
            raise _Unlike("its output is not the same twice: it keeps a state or draws random numbers")
        self.module.train(not self.module.training)
        if not _close(self._output(long), first):
            raise _Unlike("it computes something else in training mode")
        if self._state() != after:
            raise _Unlike("its forward changes its attributes: it keeps a state between calls")
        self._check_dtypes()
        return candidates[0]

    def _random(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=self.dtype, device="cpu") * 2 - 1

    def _clip(self, frames: int, batch: int = 1) -> Tensor:
        return self._random(batch, self.weight.shape[1] * self.conv.groups, frames, *self.pixels)

    def _output(self, clip: Tensor) -> Tensor:
        given = clip.clone()
        output = type(self.module).forward(self.module, given)
        if not isinstance(output, Tensor):
            raise _Unlike(f"its forward returns a {type(output).__name__}, not the frames alone")
        if not torch.equal(given, clip):
            raise _Unlike("its forward changes its input")
        return output

    def _agrees(self, output: Tensor, clip: Tensor, modes: Modes, *, few: bool = False) -> bool:
        """Whether `causal_conv3d` gives this output; with `few`, in a few of its channels."""
        conv, channels = self.conv, slice(_FEW_CHANNELS if few else None)
        size = output_size(
            clip.shape, conv.kernel_size, conv.stride, conv.dilation, modes.temporal, modes.spatial
        )
        if output.shape != (clip.shape[0], self.weight.shape[0], *size):
            return False
        expected = causal_conv3d(
            clip,
            self.weight[channels],
            None if self.bias is None else self.bias[channels],
            stride=tuple(conv.stride),
            dilation=tuple(conv.dilation),
            temporal_mode=modes.temporal,
            spatial_mode=modes.spatial,
            backend="reference",
            precision="high",
        )
        return _close(output[:, channels], expected)

    def _unlike(self, output: Tensor, clip: Tensor) -> str:
        """Say how the module differs."""
        changed = clip.clone()
        changed[:, :, -1] += 1
        told = (
            f"{clip.shape[2]} frames become {output.shape[2]}" if output.dim() == 5 else "not five dimensions"
        )
        if output.dim() == 5 and not _close(self._output(changed)[:, :, :-1], output[:, :, :-1]):
            return f"it looks at frames that come later, so it is not causal ({told})"
        return f"it is none of the convolutions that causal_conv3d computes ({told})"

    def _state(self) -> dict[str, Hashable]:
        """Return everything that running the twin could change."""
        state: dict[str, Hashable] = {}
        for part in dict.fromkeys((self.module, self.conv)):
            state.update({name: frozen(part.__dict__[name]) for name in setting_names(part)})
            tensors = itertools.chain(part.named_parameters(recurse=False), part.named_buffers(recurse=False))
            state.update({name: tensor._version for name, tensor in tensors})
        return state

    def _check_dtypes(self) -> None:
        """Require the dtype of the input for the output, also in that of the real weights."""
        for dtype in dict.fromkeys((torch.float32, self.own_dtype)):
            if dtype not in FLOAT_DTYPES:
                continue
            module = copy.deepcopy(self.module).to(dtype)
            try:
                output = type(module).forward(module, self._clip(self.span + 1).to(dtype))
            except NotImplementedError:  # this processor's convolutions do not know the dtype
                continue
            if output.dtype != dtype:
                raise _Unlike(f"its output is {output.dtype} for {dtype}")


def _all_modes() -> list[Modes]:
    return [Modes(*words) for words in itertools.product(TEMPORAL_MODES, SPATIAL_MODES)]


def _twin(module: nn.Module, random: Any) -> nn.Module:
    """Return a module of the same class and settings on the CPU, with random weights and nothing shared."""
    twin = type(module).__new__(type(module))
    nn.Module.__init__(twin)
    for name in setting_names(module):
        twin.__dict__[name] = copy.deepcopy(module.__dict__[name])
    twin.training = module.training
    for name, parameter in module._parameters.items():
        weight = None if parameter is None else nn.Parameter(random(*parameter.shape), requires_grad=False)
        twin._parameters[name] = weight
    for name, buffer in module._buffers.items():
        if buffer is not None:
            buffer = buffer.detach().to(
                "cpu", random(1).dtype if buffer.is_floating_point() else None, copy=True
            )
        twin._buffers[name] = buffer
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _twin(child, random)
    return twin


def _close(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and bool((a - b).abs().max() <= _TOLERANCE[b.dtype] * b.abs().max())
    )
