"""What a convolution module computes, found by running it: for classes without rules.

A twin of the module convolves a few random pixels in float64. Where its outputs are those of `causal_conv3d`
with one choice of modes, for short and longer clips, and nothing about it has changed by running, the module
computes that and nothing else. That twin has a few channels; one that has all of them is looked at briefly.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..core.checks import FLOAT_DTYPES
from ..ops import causal_conv3d
from ..ops.causal_conv3d.spec import SPATIAL_MODES, TEMPORAL_MODES, output_size
from .fingerprint import fingerprint, frozen, setting_names, why_unknown
from .twin import Draw, make_twin

# The same sum in another order in float64 and float32; another padding makes a difference of order 1.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_FEW_CHANNELS = 8
_NOT_TWICE = "its output is not the same twice: it keeps a state or draws random numbers"


@dataclass(frozen=True)
class Modes:
    """How a convolution pads, in the words of `causal_conv3d`.

    Attributes:
        temporal: What stands before the first frame.
        spatial: What stands around a frame.
        own_backward: Whether its gradients are not those of the convolution.
    """

    temporal: str
    spatial: str
    own_backward: bool = False


def probe(module: nn.Module, conv: nn.Module) -> Modes | str:
    """Find out which `causal_conv3d` a module computes, on a twin with a few channels.

    Args:
        module: The module; its `forward` takes the frames.
        conv: The `nn.Conv3d` that is the module, or its only child.

    Returns:
        The modes; or a sentence that says what is in the way.
    """
    for part in dict.fromkeys((module, conv)):
        reason = why_unknown(fingerprint(part))
        if reason is not None:
            return reason
    words = ""
    # Code that knows one dtype only, or derives sizes from channels, fails with the first ways to try.
    ways = itertools.product((torch.float64, torch.float32), (_FEW_CHANNELS, None))
    with _aside():
        for dtype, channels in ways:
            try:
                return _Probe(module, dtype, channels).run(conv.weight.dtype)
            except _Unlike as unlike:
                return str(unlike)
            except Exception as error:  # whatever a class of somebody else's raises
                words = words or f"{type(error).__name__}: {error}"
    return f"its forward, called with frames alone, fails with {' '.join(words.split())[:200]}"


def why_not_confirmed(module: nn.Module, modes: Modes) -> str | None:
    """Return how a module with all of its channels differs from what was found with a few, or None."""
    try:
        with _aside():
            return _Probe(module, torch.float32, None).why_not(modes)
    except _Unlike as unlike:
        return str(unlike)


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

    def __init__(self, module: nn.Module, dtype: torch.dtype, channels: int | None) -> None:
        self.draw = Draw(dtype, torch.Generator().manual_seed(7))
        self.module = make_twin(module, self.draw, channels)
        self.conv = next(iter(self.module._modules.values()), self.module)
        spans = (d * (k - 1) for k, d in zip(self.conv.kernel_size, self.conv.dilation, strict=True))
        self.span, height, width = spans
        # Larger than any halo, and no square, so that height and width cannot be mixed up.
        self.pixels = (height + 2, width + 3)

    def run(self, own_dtype: torch.dtype) -> Modes:
        """Return the modes.

        Args:
            own_dtype: Of the weights of the module itself.

        Raises:
            _Unlike: It is no `causal_conv3d`.
        """
        long = self._clip(self.span + 3)
        first = self._output_without_trace(long)
        candidates = [modes for modes in _all_modes() if self._agrees(first, long, modes)]
        if not candidates:
            raise _Unlike(self._why_unlike(first, long))
        clips = [long]
        for frames in sorted({1, 2, self.span + 1, self.span + 2}):
            if frames <= self.span and candidates[0].temporal == "valid":
                continue  # too short without padding, for both
            clip = self._clip(frames, batch=1 + (frames == 2))
            clips.append(clip)
            output = self._output(clip)
            candidates = [modes for modes in candidates if self._agrees(output, clip, modes)]
            if not candidates:
                raise _Unlike(f"with {frames} frames it computes something else than with {long.shape[2]}")
        if not _close(self._output_without_trace(long), first):
            raise _Unlike(_NOT_TWICE)
        modes = candidates[0]
        own_backward = not all(self._gradients_agree(clip, modes) for clip in clips)
        self.module.train(not self.module.training)
        if not _close(self._output_without_trace(long), first):
            raise _Unlike("it computes something else in training mode")
        own_backward = own_backward or not all(self._gradients_agree(clip, modes) for clip in clips)
        for dtype in dict.fromkeys((torch.float32, own_dtype)):
            self._check_dtype(dtype)
        return replace(modes, own_backward=own_backward)

    def why_not(self, modes: Modes) -> str | None:
        """Return a sentence if the first channels are not those of these modes, else None."""
        clip = self._clip(self.span + 1)
        if self._agrees(self._output(clip), clip, modes, channels=_FEW_CHANNELS):
            return None
        return "it computes something else with all of its channels than with a few"

    def _clip(self, frames: int, batch: int = 1) -> Tensor:
        return self.draw(batch, self.conv.weight.shape[1], frames, *self.pixels)

    def _output(self, clip: Tensor) -> Tensor:
        given = clip.clone()
        output = self._forward(given)
        if not isinstance(output, Tensor):
            raise _Unlike(f"its forward returns a {type(output).__name__}, not the frames alone")
        if not torch.equal(given, clip):
            raise _Unlike("its forward changes its input")
        return output

    def _forward(self, clip: Tensor) -> Tensor:
        return type(self.module).forward(self.module, clip)

    def _output_without_trace(self, clip: Tensor) -> Tensor:
        before = self._state()
        output = self._output(clip)
        changed = [name for name, value in self._state().items() if value != before.get(name, _Unlike)]
        if changed:
            raise _Unlike(f"its forward changes {', '.join(changed)}: it keeps a state between calls")
        return output

    def _state(self) -> dict[str, Hashable]:
        """Return everything that running the twin could change."""
        state: dict[str, Hashable] = {}
        for part in dict.fromkeys((self.module, self.conv)):
            state.update({name: frozen(part.__dict__[name]) for name in setting_names(part)})
            tensors = itertools.chain(part.named_parameters(recurse=False), part.named_buffers(recurse=False))
            state.update({name: tensor._version for name, tensor in tensors})
        return state

    def _agrees(self, output: Tensor, clip: Tensor, modes: Modes, channels: int | None = None) -> bool:
        """Whether `causal_conv3d` gives this output, in the first channels if so many are told."""
        conv = self.conv
        steps = tuple(conv.stride), tuple(conv.dilation)
        size = output_size(clip.shape, conv.kernel_size, *steps, modes.temporal, modes.spatial)
        if output.shape != (clip.shape[0], conv.weight.shape[0], *size):
            return False
        return _close(output[:, :channels], self._convolution(clip, modes, channels))

    def _convolution(self, clip: Tensor, modes: Modes, channels: int | None = None) -> Tensor:
        conv = self.conv
        return causal_conv3d(
            clip,
            conv.weight[:channels],
            None if conv.bias is None else conv.bias[:channels],
            stride=tuple(conv.stride),
            dilation=tuple(conv.dilation),
            temporal_mode=modes.temporal,
            spatial_mode=modes.spatial,
            backend="reference",
            precision="high",
        )

    def _gradients_agree(self, clip: Tensor, modes: Modes) -> bool:
        """Whether input, weight and bias get the gradients of the convolution, and the output is the same."""
        weights = [p for p in (self.conv.weight, self.conv.bias) if p is not None]
        leaves = [clip.clone().requires_grad_(), *(p.requires_grad_() for p in weights)]
        try:
            with torch.enable_grad():
                expected = self._convolution(leaves[0], modes)
                towards = self.draw(*expected.shape)
                like = (expected, *torch.autograd.grad(expected, leaves, towards))
                output = self._forward(leaves[0])
                got = (output, *torch.autograd.grad(output, leaves, towards, allow_unused=True))
        except Exception:  # a backward of its own, then
            return False
        finally:
            for parameter in weights:
                parameter.requires_grad_(False)
        return all(a is not None and _close(a, b) for a, b in zip(got, like, strict=True))

    def _why_unlike(self, output: Tensor, clip: Tensor) -> str:
        """Say how the module differs."""
        if output.dim() != 5:
            return f"its output has shape {tuple(output.shape)}, expected five dimensions"
        if not _close(self._output(clip), output):
            return _NOT_TWICE
        told = f"{clip.shape[2]} frames become {output.shape[2]}"
        changed = clip.clone()
        changed[:, :, -1] += 1
        if not _close(self._output(changed)[:, :, :-1], output[:, :, :-1]):
            return f"it looks at frames that come later, so it is not causal ({told})"
        return f"it is none of the convolutions that causal_conv3d computes ({told})"

    def _check_dtype(self, dtype: torch.dtype) -> None:
        """Require the dtype of the input for the output."""
        if dtype not in FLOAT_DTYPES:
            return
        module = copy.deepcopy(self.module).to(dtype)
        try:
            output = type(module).forward(module, self._clip(self.span + 1).to(dtype))
        except NotImplementedError:  # the convolutions of this processor do not know the dtype
            return
        if output.dtype != dtype:
            raise _Unlike(f"its output is {output.dtype} for {dtype}")


def _all_modes() -> Iterator[Modes]:
    return (Modes(*words) for words in itertools.product(TEMPORAL_MODES, SPATIAL_MODES))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return b.numel() == 0 or bool((a - b).abs().max() <= _TOLERANCE[b.dtype] * b.abs().max())
