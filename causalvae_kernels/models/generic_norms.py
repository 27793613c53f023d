"""For classes without rules, norms over channels are detected by probing modules numerically.

A module without children is run once on random pixels, with random weights of its own; where the result is
x / sqrt(mean(x^2) + eps) over channels, times a weight and plus a bias if it has them, it is an `rms_norm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..coder import record as recording
from ..core.precision import autocast_dtype
from ..ops import rms_norm
from .conv import is_small
from .fingerprint import Fingerprint, fingerprint, setting_names
from .norms import takes
from .recorded import record_rms_norm
from .swap import Link
from .twin import Draw, make_twin

# Of the values to norm: with the smallest ones `eps` shows.
_SCALES = (1.0, 1e-3)
_CHANNELS = 8
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class RmsNorm:
    """What a module computes.

    Attributes:
        weight: Name of the parameter that is multiplied, or None.
        bias: Name of the one that is added, or None.
        eps: Added to the mean of the squares.
        dims: How many dimensions its input may have: 5 for videos, 4 for images.
    """

    weight: str | None
    bias: str | None
    eps: float
    dims: tuple[int, ...]


def probe_norm(module: nn.Module) -> RmsNorm | None:
    """Return which norm a module is, or None; the module is not run, only a copy of it."""
    kind = type(module)
    if module._modules or module._buffers or kind.__module__.startswith("torch.nn."):
        return None
    named = {name: p for name, p in module._parameters.items() if p is not None}
    if len(named) > 2 or len({p.numel() for p in named.values()}) > 1:
        return None
    if any(max(p.shape, default=0) != p.numel() for p in named.values()):
        return None
    try:
        return _probe(module, named)
    except Exception:  # it is no function of one tensor
        return None


def _probe(module: nn.Module, named: dict[str, nn.Parameter]) -> RmsNorm | None:
    draw = Draw(torch.float64, torch.Generator().manual_seed(0))
    twin = make_twin(module, draw)
    channels = next((p.numel() for p in named.values()), _CHANNELS)
    found: dict[tuple[Any, ...], list[int]] = {}
    for dims in (5, 4):
        shape = (2, channels, 3, 2, 5)[: dims - 1] + (5,)
        for names, eps in _readings(twin, list(named)):
            if all(_agrees(twin, names, eps, draw(*shape) * scale) for scale in _SCALES):
                found.setdefault((*names, eps), []).append(dims)
                break
    if len(found) != 1:
        return None
    ((weight, bias, eps), dims) = next(iter(found.items()))
    return RmsNorm(weight, bias, eps, tuple(dims))


def _readings(twin: nn.Module, names: list[str]) -> Iterator[tuple[tuple[str | None, str | None], float]]:
    """Give what a norm's parameters and `eps` may be."""
    numbers = [v for name in setting_names(twin) if type(v := twin.__dict__[name]) is float and 0 < v < 1e-2]
    pairs: list[tuple[str | None, str | None]] = [(None, None)]
    if len(names) == 1:
        pairs = [(names[0], None)]
    if len(names) == 2:
        pairs = [(names[0], names[1]), (names[1], names[0])]
    for pair in pairs:
        for eps in (0.0, *numbers, 1e-8, 1e-6, 1e-5):
            yield pair, eps


def _agrees(twin: nn.Module, names: tuple[str | None, str | None], eps: float, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            made = type(twin).forward(twin, x.clone())
    except Exception:  # it does not take such an input
        return False
    if not isinstance(made, Tensor) or (made.shape, made.dtype) != (x.shape, x.dtype):
        return False
    weight, bias = (None if name is None else twin._parameters[name].flatten() for name in names)
    expected = _norm(x, weight, bias, eps, backend="reference")
    return bool((made - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, **options: Any) -> Tensor:
    video = x if x.dim() == 5 else x.unsqueeze(2)
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    made = rms_norm(video, weight, bias, eps=eps, activation=None, **options)
    return made if x.dim() == 5 else made.squeeze(2)


class NormTable:
    """Which modules of a model are norms, by class, settings and number of channels."""

    def __init__(self) -> None:
        """Know nothing."""
        self._found: dict[tuple[Fingerprint, tuple[Any, ...]], RmsNorm | None] = {}

    def look_at(self, module: nn.Module) -> RmsNorm | None:
        """Return which norm a module is, probing it if it is of a new kind."""
        key = _key(module)
        if key not in self._found:
            self._found[key] = probe_norm(module)
        return self._found[key]

    def get(self, module: nn.Module) -> RmsNorm | None:
        """Return which norm a module is, or None; nothing is probed."""
        return self._found.get(_key(module))

    def __deepcopy__(self, memo: dict[int, Any]) -> NormTable:
        """Return a table of its own."""
        table = NormTable()
        table._found.update(self._found)
        return table

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle an empty one: fingerprints hold functions."""
        return NormTable, ()


def _key(module: nn.Module) -> tuple[Fingerprint, tuple[Any, ...]]:
    shapes = tuple([None if p is None else p.shape for p in module._parameters.values()])
    return fingerprint(module), shapes


def norm(module: nn.Module, link: Link, *args: Any, **kwargs: Any) -> Any:
    """A module that computes an `rms_norm`, as its table says."""
    found = link.own.norms.get(module)
    x = args[0] if len(args) == 1 and not kwargs else None
    if found is None or not isinstance(x, Tensor) or x.dim() not in found.dims:
        return type(module).forward(module, *args, **kwargs)
    weight, bias = (None if n is None else module._parameters.get(n) for n in (found.weight, found.bias))
    parameters = [p for p in (weight, bias) if p is not None]
    if not takes(parameters, x) or autocast_dtype(x) is not None:
        return type(module).forward(module, x)
    if recording.current() is not None:
        return record_rms_norm(module, x, weight, bias, found.eps)
    if any(p.dtype != x.dtype for p in parameters) or is_small(link, x):
        return type(module).forward(module, x)
    parts = (None if p is None else p.flatten() for p in (weight, bias))
    return _norm(x, *parts, found.eps, backend=link.backend, precision=link.precision)


def why_norm_left(table: NormTable, module: nn.Module) -> str | None:
    """Return why a module is left as it is, or None."""
    return None if table.get(module) is not None else "its settings were changed since the swap"
