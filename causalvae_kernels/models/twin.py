"""A twin of a module: the same class and settings, random weights, no hooks, nothing shared.

Running it leaves no trace on the module, and random weights leave nothing to chance: with weights that are
zero, as some are when a training begins, every convolution would look like every other.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .fingerprint import setting_names

CHANNELS = ("in_channels", "out_channels")
"""What a twin may have fewer of."""

# Numbers that are drawn; longer tensors repeat them.
_DRAWN = 65521


@dataclass(frozen=True)
class Draw:
    """Random numbers of its own generator, between -1 and 1.

    Attributes:
        dtype: Of the tensors.
        generator: Of the numbers.
    """

    dtype: torch.dtype
    generator: torch.Generator

    def __call__(self, *shape: int) -> Tensor:
        """Return a tensor on the CPU."""
        count = torch.Size(shape).numel()
        drawn = torch.rand(min(count, _DRAWN), generator=self.generator, dtype=self.dtype, device="cpu")
        return (drawn * 2 - 1).repeat(-(-count // _DRAWN))[:count].view(shape)


def make_twin(module: nn.Module, draw: Draw, most: int | None = None) -> nn.Module:
    """Return the twin of a module.

    Args:
        module: The module.
        draw: Gives the weights.
        most: Of an `nn.Conv3d`, or of a module whose only child is one: the channels of the convolution, in
            and out; default: as many as it has.
    """
    return _twin(module, draw, {} if most is None else _fewer(module, most))


def _fewer(module: nn.Module, most: int) -> dict[str, int]:
    conv = next(iter(module._modules.values()), module)
    return {name: min(getattr(conv, name), most) for name in CHANNELS}


def _twin(module: nn.Module, draw: Draw, channels: dict[str, int]) -> nn.Module:
    twin = type(module).__new__(type(module))
    nn.Module.__init__(twin)
    for name in setting_names(module):
        twin.__dict__[name] = channels.get(name, copy.deepcopy(module.__dict__[name]))
    twin.training = module.training
    for name, parameter in module._parameters.items():
        if parameter is not None:
            shape = list(parameter.shape)
            if channels and name in ("weight", "bias"):
                shape[: len(shape[:2])] = [channels["out_channels"], channels["in_channels"]][: len(shape)]
            parameter = nn.Parameter(draw(*shape), requires_grad=False)
        twin._parameters[name] = parameter
    for name, buffer in module._buffers.items():
        if buffer is not None:
            dtype = draw.dtype if buffer.is_floating_point() else buffer.dtype
            buffer = buffer.detach().to("cpu", dtype, copy=True)
        twin._buffers[name] = buffer
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _twin(child, draw, channels)
    return twin
