"""Which numbers of frames make the round trip through a VAE.

A video VAE compresses time, and so takes some counts only. What diffusers' models do with the others differs:
they drop the last frames, spoil the first ones, return more than went in, or fail. A `FrameRule` says which,
before anything runs. The facts come from the model's own attributes and configuration (see `model_rules`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import InvalidInput
from ..core.optional import install
from .frame_codecs import Codec
from .model_rules import FAMILIES

# Beyond the longest period of any family.
_SEARCH = 512
# Beyond the last valid count of a model that has such, with any sensible window.
_LAST = 2**16
_MISSING = object()


@dataclass(frozen=True)
class FrameRule:
    """How many frames a model returns for a number of frames.

    "As shipped" is the model as diffusers runs it. "Adapted" is the model after `swap(vae, frames="any")`,
    which knows its first chunk; the two differ for CogVideoX only.

    Attributes:
        model: Name of the diffusers class.
        temporal_compression_ratio: Frames per latent.
        codec: What encoder and decoder do to counts.
    """

    model: str
    temporal_compression_ratio: int
    codec: Codec

    @property
    def name(self) -> str:
        """The short name of the class: "CogVideoX" for `AutoencoderKLCogVideoX`."""
        return short_name(self.model)

    @property
    def lead_frames(self) -> int:
        """Copies of the first frame that the model wants in front; its decoder drops as many. Mostly none."""
        return self.codec.lead

    @property
    def time_dim(self) -> int:
        """The dimension of time in what `decode` returns: 2 as in (B, C, T, H, W), for Allegro 1."""
        return self.codec.time_dim

    def num_latents(self, num_frames: int, *, adapted: bool = False) -> int | None:
        """Return how many latents `num_frames` encode to; None if the model refuses or fails."""
        return self._codec(adapted).encode(num_frames) if num_frames > 0 else None

    def num_decoded(self, num_latents: int, *, adapted: bool = False) -> int | None:
        """Return how many frames `num_latents` decode to; None if the model refuses or fails."""
        return self._codec(adapted).decode(num_latents) if num_latents > 0 else None

    def round_trip(self, num_frames: int, *, adapted: bool = False) -> int | None:
        """Return how many frames come out if `num_frames` go in; None if the model refuses or fails."""
        latents = self.num_latents(num_frames, adapted=adapted)
        return None if latents is None else self.num_decoded(latents, adapted=adapted)

    def is_valid(self, num_frames: int, *, adapted: bool = False) -> bool:
        """Tell whether as many frames come out as go in, each in its place and on the trained path."""
        return self.lead_frames == 0 and self.comes_back(num_frames, adapted=adapted)

    def comes_back(self, num_frames: int, *, adapted: bool = False) -> bool:
        """Tell whether a count would be valid with `lead_frames` in front, which no other model needs."""
        run = num_frames + self.lead_frames
        return (
            num_frames > 0
            and self._codec(adapted).aligned(run)  # first: it is arithmetic, a round trip walks over windows
            and self.round_trip(run, adapted=adapted) == num_frames
        )

    def nearest_valid(self, num_frames: int, *, adapted: bool = False) -> tuple[int | None, int | None]:
        """Return the largest valid count that is no larger and the smallest that is no smaller.

        Returns:
            Both are `num_frames` if it is valid; None where there is no such count.
        """
        if self.lead_frames:
            return None, None
        return (
            self.nearest(num_frames, below=True, adapted=adapted),
            self.nearest(num_frames, below=False, adapted=adapted),
        )

    def nearest(self, num_frames: int, *, below: bool, adapted: bool = False) -> int | None:
        """Return the largest count up to `num_frames`, or the smallest from it on, that comes back."""
        counts = _below(num_frames) if below else range(max(num_frames, 1), max(num_frames, 1) + _SEARCH)
        return next((n for n in counts if self.comes_back(n, adapted=adapted)), None)

    def words(self, adapted: bool = False) -> str:
        """Return the valid counts in words, such as "1 or 8k+1 frames"."""
        words = _words([n for n in range(1, _SEARCH) if self.comes_back(n, adapted=adapted)])
        if self.codec.refusal:
            words += f" {self.codec.refusal}"
        if self.lead_frames:
            copies = "1 copy" if self.lead_frames == 1 else f"{self.lead_frames} copies"
            words += f", with {copies} of the first frame in front"
        return words

    def _codec(self, adapted: bool) -> Codec:
        return self.codec.adapted() if adapted else self.codec


def frame_rule(vae: object) -> FrameRule:
    """Return the frame rule of a VAE.

    Args:
        vae: A model (or an instance of a subclass), its configuration (a mapping with `_class_name`), or the
            name of its class, with or without `AutoencoderKL` in front. What a name or a configuration leaves
            open is taken from the defaults of the class, for which diffusers is imported.

    Returns:
        The rule; the same for a model and for what describes it.

    Raises:
        InvalidInput: Nothing is known about it, or diffusers is needed and missing.
    """
    if isinstance(vae, FrameRule):
        return vae
    if isinstance(vae, str):
        model, got = class_named(vae, FAMILIES), f"the name {vae!r}"
    elif isinstance(vae, Mapping):
        model, got = vae.get("_class_name"), "a configuration with "
        got += "no _class_name (add it, or pass the model)" if model is None else f"_class_name {model!r}"
        model = model if isinstance(model, str) and model in FAMILIES else None
    else:
        vae = getattr(vae, "_orig_mod", vae)
        model = next((c.__name__ for c in type(vae).__mro__ if c.__name__ in FAMILIES), None)
        got = f"an object of class {type(vae).__name__}"
    if model is None:
        raise InvalidInput(
            f"frame_rule: got {got}, expected a video VAE, its configuration or the name of its class; "
            f"known are {', '.join(FAMILIES)}"
        )
    try:
        codec = FAMILIES[model](_Settings(model, None if isinstance(vae, str) else vae))
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"frame_rule: a setting of this {model} cannot be read ({error}), expected a configuration as "
            "diffusers writes it"
        ) from error
    return FrameRule(model, codec.ratio, codec)


def class_named(word: str, classes: Iterable[str]) -> str | None:
    """Return the class that a word stands for, its name or its short one in any case; None if it is none."""
    known = {key: name for name in classes for key in (name.lower(), short_name(name).lower())}
    return known.get(word.lower())


def _below(num_frames: int) -> Iterator[int]:
    """Yield the counts that may be the largest valid one: within a period, or where valid counts end."""
    yield from range(num_frames, max(num_frames - _SEARCH, 0), -1)
    yield from range(min(num_frames - _SEARCH, _LAST), 0, -1)


def short_name(model: str) -> str:
    """Return the name of a class without `AutoencoderKL` in front."""
    return model.removeprefix("AutoencoderKL").removeprefix("Autoencoder")


def _words(counts: list[int]) -> str:
    """Return the rule that the counts follow, which are all that there are below `_SEARCH`."""
    if not counts:
        return "no number of frames"
    first, last = counts[0], counts[-1]
    if last < _SEARCH // 2:
        listed = ", ".join(map(str, counts[:-1]))
        return f"{listed} or {last} frames" if listed else f"{last} frame{'s' * (last > 1)}"
    step = counts[1] - first
    if counts != list(range(first, _SEARCH, step)):
        return f"{', '.join(map(str, counts[:8]))}, … frames"
    if step == 1:
        return "any number of frames"
    if first == 1:
        return f"1 or {step}k+1 frames"
    rule = f"{step}k+{first % step} frames" if first % step else f"{step}k frames"
    return rule if first <= step else f"{rule}, {first} at least"


class _Settings:
    """Reads one setting of a model: its attribute, its configuration, else the default of its class."""

    def __init__(self, model: str, source: Any) -> None:
        self.model = model
        self.attributes: Mapping[str, Any] = {}
        if source is None or isinstance(source, Mapping):
            self.config: Mapping[str, Any] = source or {}
        else:
            # Not getattr: diffusers warns when a setting is read as an attribute.
            self.attributes = vars(source)
            self.config = getattr(source, "config", {})

    def __call__(self, name: str, assigned: Any = _MISSING) -> Any:
        """Return a setting; `assigned` is what the class assigns to an attribute that is no setting."""
        for place in (self.attributes, self.config):
            if name in place:
                return place[name]
        return self._default(name) if assigned is _MISSING else assigned

    def _default(self, name: str) -> Any:
        unsaid = f"frame_rule: {self.model} does not say its {name}, and"
        try:
            import diffusers
        except ImportError as error:
            raise InvalidInput(
                f"{unsaid} the default of the class needs diffusers, which cannot be imported ({error}); "
                f"{install('diffusers')}, or pass the model or its whole configuration"
            ) from error
        cls = getattr(diffusers, self.model, None)
        parameter = inspect.signature(cls.__init__).parameters.get(name) if cls else None
        if parameter is None or parameter.default is parameter.empty:
            raise InvalidInput(
                f"{unsaid} diffusers {diffusers.__version__} has no default for it; "
                f"pass the model or its whole configuration"
            )
        return parameter.default
