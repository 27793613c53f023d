"""For models without rules, causal convolutions are detected by probing modules numerically.

A module that is, or whose only child is, an `nn.Conv3d` is probed once for every class and setting (`probe`);
those that compute a `causal_conv3d` of the frames that they are given are replaced. What a module is stands
in a table by its settings, which are looked at on every call: a module whose settings change runs as it is.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core import dry_run
from ..core.checks import FLOAT_DTYPES
from ..core.errors import InvalidInput
from ..core.precision import autocast_dtype
from ..ops import causal_conv3d
from .coders import wants_gradient
from .conv import is_small, why_weight_left
from .fingerprint import Fingerprint, Snapshot, fingerprint
from .generic_norms import NormTable, norm, why_norm_left
from .hooks import type_name, why_globally_hooked
from .probe import Modes, probe, why_not_confirmed
from .recorded import coder
from .swap import Family, Link, Rule, register_recogniser
from .twin import CHANNELS

_LOOKED_FOR = (
    "modules that are an nn.Conv3d, or hold one and nothing else, and compute what causal_conv3d computes: "
    "frames in front of the first one only, no state, the same for every call"
)


@dataclass(frozen=True)
class Kind:
    """How to read the modules of one class.

    Attributes:
        cls: The class.
        child: Name of the child that is the convolution; "": the module itself.
        parameter: What its forward calls the frames.
        defaults: The other parameters of its forward.
    """

    cls: type
    child: str
    parameter: str
    defaults: dict[str, Any]


@dataclass
class Table:
    """What was found out about the modules of a model.

    Attributes:
        kinds: By name of the class.
        found: By fingerprints and the weight's shape: the modes, or why the module is left.
        alike: The same whatever the channels.
        unprobed: How many modules may be probed at a call, because their table was pickled: fingerprints
            hold functions, which need not have a name, and mean nothing to another version of the code.
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    found: dict[Key, Modes | str] = field(default_factory=dict)
    alike: dict[Hashable, Modes | str] = field(default_factory=dict)
    unprobed: int = 0

    _seen: weakref.WeakKeyDictionary[nn.Module, tuple[Snapshot, torch.Size, Modes | str]] = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def __deepcopy__(self, memo: dict[int, Any]) -> Table:
        """Return a table of its own; what was found does not change."""
        return Table(dict(self.kinds), dict(self.found), dict(self.alike), self.unprobed)

    def __reduce__(self) -> tuple[type[Table], tuple[Any, ...]]:
        """Pickle the classes alone."""
        return Table, (self.kinds, {}, {}, len(self.found) + self.unprobed)

    def conv_of(self, module: nn.Module) -> nn.Module:
        """Return the `nn.Conv3d` of a module."""
        child = self.kinds[type_name(module)].child
        return module._modules.get(child) if child else module

    def probe(self, module: nn.Module, conv: nn.Module) -> None:
        """Probe a module unless it is known: once for all that differ in channels only, and confirm it."""
        self._seen.clear()
        key = tuple([fingerprint(part) for part in _parts(module, conv)]), conv.weight.shape
        if key in self.found:
            return
        reason = _why_call_left(type(module)) or _why_conv_left(conv)
        self.found[key] = reason or self._probed(module, conv, key)

    def _probed(self, module: nn.Module, conv: nn.Module, key: Key) -> Modes | str:
        fingerprints, shape = key
        settings = [tuple([p for p in part if p[0] not in CHANNELS]) for part in fingerprints]
        alike = (*settings, shape[2:])
        if alike not in self.alike:
            self.alike[alike] = probe(module, conv)
        modes = self.alike[alike]
        return modes if isinstance(modes, str) else why_not_confirmed(module, modes) or modes

    def modes(self, module: nn.Module) -> Modes | str:
        """Return what a module computes, or why it is left."""
        conv = self.conv_of(module)
        parts, shape = _parts(module, conv), conv.weight.shape
        if torch.compiler.is_compiling():  # the compiler guards on all that is read here
            return self.found.get((tuple([fingerprint(part) for part in parts]), shape), _CHANGED)
        seen = self._seen.get(module)
        if seen is not None and seen[1] == shape and seen[0].holds(*parts):
            return seen[2]
        snapshot = Snapshot(*parts)
        key = snapshot.fingerprints, shape
        if key not in self.found and self.unprobed and dry_run.current() is None:
            self.unprobed -= 1
            self.probe(module, conv)
        modes = self.found.get(key, _CHANGED)
        if isinstance(modes, Modes):  # others may hold a state, which is not kept alive here
            self._seen[module] = snapshot, shape, modes
        return modes

    def matches(self, module: nn.Module) -> bool:
        """Whether a module computes a `causal_conv3d`."""
        return isinstance(self.modes(module), Modes)

    def frames_of(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the frames of a call; None where anything else is given that is not the default."""
        kind = self.kinds[type_name(module)]
        names = (kind.parameter, *kind.defaults)
        if len(args) > len(names):
            return None
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        frames = given.pop(kind.parameter, None)
        for name, value in given.items():
            default = kind.defaults.get(name, _MISSING)
            if value is not default and (type(value) not in _WORDS or value != default):
                return None
        return frames


Key = tuple[tuple[Fingerprint, ...], torch.Size]

_CHANGED = "its settings were changed since the swap; call handle.refresh()"
_OWN_BACKWARD = (
    "where gradients are needed its own forward runs: its gradients are not those of the convolution"
)
_UNKNOWN = "not recognised as a causal convolution"
_MISSING = "<missing>"
_WORDS = (int, float, str)


@dataclass(frozen=True)
class RecognisedFamily(Family):
    """Rules made for one model at its swap.

    Attributes:
        table: What its convolutions compute.
        norms: Which of its modules are norms.
    """

    table: Table = field(default_factory=Table)
    norms: NormTable = field(default_factory=NormTable)

    def look_at(self, model: nn.Module) -> None:
        """Probe the modules whose class and settings are not in the table yet."""
        candidates = [(module, *found) for module in model.modules() if (found := _conv_in(module))]
        for module, child, conv in candidates:
            name = type_name(module)
            kind = self.table.kinds.get(name)
            if kind is None:
                kind = self.table.kinds[name] = Kind(type(module), child, *_parameters_of(type(module)))
            if type(module) is not kind.cls or child != kind.child or why_weight_left(conv):
                continue
            self.table.probe(module, conv)
            # A wrapper that is left needs no rule: its convolution has one.
            if name not in self.rules and (child == "" or self.table.matches(module)):
                bypasses = ((child, type_name(conv)),) if child else ()
                left = functools.partial(why_conv_left, self.table)
                self.rules[name] = Rule(
                    causal_conv, bypasses, left, note=functools.partial(_note, self.table)
                )
        for module in model.modules():
            if self.norms.look_at(module) is not None:
                left = functools.partial(why_norm_left, self.norms)
                self.rules.setdefault(type_name(module), Rule(norm, (), left, is_recorded=True))
            if _is_coder(module):
                self.rules.setdefault(type_name(module), Rule(coder))


def recognise(model: nn.Module) -> Family:
    """Return rules for the causal convolutions of a model.

    Raises:
        InvalidInput: There are none.
    """
    family = RecognisedFamily(type(model).__name__, {}, {}, unknown=_UNKNOWN)
    reason = why_globally_hooked()
    reasons: list[str] = []
    if reason is None:
        family.look_at(model)
        for module in filter(_conv_in, model.modules()):
            left = why_conv_left(family.table, module)
            if left is not None:
                reasons.append(left)
            elif type_name(module) in family.rules and family.table.conv_of(module).kernel_size[0] > 1:
                return family
    reasons = list(dict.fromkeys(reasons))
    words = reason or "; ".join(reasons[:3]) or "it has no nn.Conv3d with more than one frame"
    raise InvalidInput(f"looked for {_LOOKED_FOR}; found none: {words}")


register_recogniser(recognise)


def causal_conv(module: nn.Module, link: Link, *args: Any, **kwargs: Any) -> Any:
    """A module that computes a `causal_conv3d`, as its table says; with anything but frames, the original."""
    table = link.own.table
    modes, conv = table.modes(module), table.conv_of(module)
    x = table.frames_of(module, args, kwargs)
    if not _fits(x, conv, modes) or is_small(link, x) or (modes.own_backward and wants_gradient(conv, (x,))):
        return type(module).forward(module, *args, **kwargs)
    return causal_conv3d(
        x,
        conv.weight,
        conv.bias,
        stride=tuple(conv.stride),
        dilation=tuple(conv.dilation),
        temporal_mode=modes.temporal,
        spatial_mode=modes.spatial,
        backend=link.backend,
        precision=link.precision,
    )


def why_conv_left(table: Table, module: nn.Module) -> str | None:
    """Return why a module is left as it is, or None."""
    kind = table.kinds[type_name(module)]
    if type(module) is not kind.cls:
        return "another class of the same name was looked at"
    conv = table.conv_of(module)
    if conv is None or conv._parameters.get("weight") is None:
        return "it has no convolution with a weight any more"
    reason = why_weight_left(conv)
    if reason is not None:
        return reason
    if conv.weight.is_meta:
        return "its weight is on the meta device: it has no values; load it"
    if conv.weight.dtype not in FLOAT_DTYPES:
        return f"its weight is {conv.weight.dtype} on {conv.weight.device}"
    modes = table.modes(module)
    return modes if isinstance(modes, str) else None


def _why_conv_left(conv: nn.Module) -> str | None:
    """Return what about an `nn.Conv3d` no `causal_conv3d` does, or None."""
    if any(k % 2 == 0 for k in conv.kernel_size[1:]) or not all(s in (1, 2) for s in conv.stride):
        return f"kernel size {conv.kernel_size} with stride {conv.stride} is not one that causal_conv3d takes"
    return None if conv.groups == 1 else f"groups={conv.groups} is not what causal_conv3d does"


def _fits(x: Any, conv: nn.Module, modes: Modes) -> bool:
    """Whether this is a call for the op; the original says what is wrong with others."""
    if not isinstance(x, Tensor) or x.dim() != 5 or x.numel() == 0 or x.shape[1] != conv.weight.shape[1]:
        return False
    if x.dtype != conv.weight.dtype and autocast_dtype(x) is None:
        return False
    span, height, width = (d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    if modes.temporal == "valid" and x.shape[2] <= span:
        return False
    if modes.spatial == "valid":
        return x.shape[3] > height and x.shape[4] > width
    return modes.spatial != "reflect" or (x.shape[3] > height // 2 and x.shape[4] > width // 2)


def _conv_in(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Return the name and the `nn.Conv3d` of a module that might be a causal convolution, or None."""
    child, conv = "", module
    if not isinstance(module, nn.Conv3d):
        if module._parameters or len(module._modules) != 1 or type(module).__module__.startswith("torch.nn."):
            return None
        ((child, conv),) = module._modules.items()
        if type(module).forward is nn.Module.forward:
            return None
    if not isinstance(conv, nn.Conv3d) or conv._modules or conv._parameters.get("weight") is None:
        return None
    return child, conv


def _is_coder(module: nn.Module) -> bool:
    """Whether a module has a `forward` of its own around several convolutions over time."""
    if type(module).__module__.startswith("torch.nn.") or type(module).forward is nn.Module.forward:
        return False
    convs = (m for m in module.modules() if isinstance(m, nn.Conv3d) and m is not module)
    return sum(conv.kernel_size[0] > 1 for conv in convs) > 1


def _parts(module: nn.Module, conv: nn.Module) -> tuple[nn.Module, ...]:
    return (module,) if conv is module else (module, conv)


def _note(table: Table, module: nn.Module) -> str | None:
    """Return in which calls alone a module is replaced, or None."""
    modes = table.modes(module)
    return _OWN_BACKWARD if isinstance(modes, Modes) and modes.own_backward else None


def _parameters_of(cls: type) -> tuple[str, dict[str, Any]]:
    """Return the name of the first parameter of a class's forward, and the others with their defaults."""
    _, *parameters = inspect.signature(cls.forward).parameters.values()
    named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if not named:
        return "", {}
    return named[0].name, {p.name: p.default for p in named[1:] if p.default is not p.empty}


def _why_call_left(cls: type) -> str | None:
    """Return what else a class's forward needs, or None."""
    _, *parameters = inspect.signature(cls.forward).parameters.values()
    if not parameters:
        return "its forward takes nothing"
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters[1:] if p.default is p.empty and p.kind not in variable]
    if needed:
        return f"its forward needs {', '.join(needed)} beside the frames"
    return None
