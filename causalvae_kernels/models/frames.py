"""Any number of frames in, the same number out: `encode`, `decode` and `forward` of an adapted model.

`encode` pads the end of the clip up to a count that the model takes, `decode` crops. In between the count
travels on what `encode` returns, or in `num_frames`; a tensor of latents does not carry it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..core import memory
from ..core.checks import check_count, check_video
from ..core.errors import InvalidInput
from ..temporal import frame_rule, plan_frames

FRAMES = ("as_is", "any")

# (link, frames): what `num_frames_of` was opened with, for the models of that swap.
_NUM_FRAMES: ContextVar[tuple[Any, int] | None] = ContextVar("num_frames", default=None)
# Whether a chunk is taken for the first one as diffusers does it, by an odd length.
_GUESSED: ContextVar[bool] = ContextVar("guessed", default=False)


def encode(
    model: nn.Module, link: Any, x: Tensor, *args: Any, num_frames: int | None = None, **kwargs: Any
) -> Any:
    """Encode any number of frames; what is returned, and its `latent_dist`, know the number as `num_frames`.

    Args:
        model: The model.
        link: Of its swap.
        x: Frames, shape (B, C, T, H, W). Where the model needs it, copies of the last one are put at the end.
        *args: What the model's own method takes behind them, as in diffusers.
        num_frames: How many of the T frames belong to the clip, if the caller padded it; default: T.
        **kwargs: As `args`.

    Raises:
        InvalidInput: `num_frames` is not one of 1 … T; the model does not compute what it was swapped to.
    """
    check_video("encode", "x", x, empty_batch=True)
    given = x.shape[2]
    count = given if num_frames is None else check_count("encode", "num_frames", num_frames, given)
    plan = plan_frames(given, frame_rule(model), "pad", adapted=True)
    return_dict, others = _others(type(model).encode, args, kwargs)
    output = type(model).encode(model, plan.apply(x), **others, return_dict=return_dict)
    posterior = output.latent_dist if return_dict else output[0]
    check_made("encode", plan.run_frames, "frames", posterior.mode().shape[2], "latents", plan.num_latents)
    posterior.num_frames = count
    if return_dict:
        output.num_frames = count
    return output


def decode(
    model: nn.Module, link: Any, z: Tensor, *args: Any, num_frames: int | None = None, **kwargs: Any
) -> Any:
    """Decode latents, and keep the first `num_frames` frames.

    Args:
        model: The model.
        link: Of its swap.
        z: Latents, shape (B, C, L, h, w).
        *args: What the model's own method takes behind them, as in diffusers.
        num_frames: Frames to return; default: what `Swap.num_frames` was opened with, else all that the
            latents hold (CogVideoX: 4L-3). An even number of CogVideoX's latents also decodes to more, up to
            4L, as diffusers does it; those frames stand in front and are blends.
        **kwargs: As `args`.

    Raises:
        InvalidInput: The latents do not hold `num_frames` frames; the model does not compute what it was
            swapped to.
    """
    check_video("decode", "z", z, empty_batch=True)
    rule, latents = frame_rule(model), z.shape[2]
    held, shipped = rule.num_decoded(latents, adapted=True), rule.num_decoded(latents)
    most = max(held, shipped or 0)
    asked = _asked(link) if num_frames is None else check_count("decode", "num_frames", num_frames, most)
    if asked is None:
        if shipped != held:
            _warn_once(link, latents, held, shipped)
        asked = held
    if asked > most:
        needed = plan_frames(asked, rule, "pad", adapted=True)
        warnings.warn(
            f"{asked} frames were asked for by num_frames(), but {latents} latents hold {most}; these are "
            f"returned. {asked} frames need {needed.num_latents} latents: ask the pipeline for "
            f"num_frames={needed.run_frames}",
            stacklevel=3,
        )
        asked = most
    return_dict, others = _others(type(model).decode, args, kwargs)
    token = _GUESSED.set(asked > held)
    try:
        frames = type(model).decode(model, z, **others).sample
    finally:
        _GUESSED.reset(token)
    expected = held if asked <= held else shipped
    more = f", and ask a compiled decoder for no more than {held} frames" if asked > held else ""
    check_made("decode", latents, "latents", frames.shape[rule.time_dim], "frames", expected, more)
    frames = memory.cut(frames, rule.time_dim, 0 if asked <= held else shipped - asked, asked)
    return decoder_output(frames) if return_dict else (frames,)


def forward(model: nn.Module, link: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Encode and decode, as in diffusers; as many frames come out as went in."""
    check_video("forward", "sample", sample, empty_batch=True)
    with num_frames_of(link, sample.shape[2]):
        return type(model).forward(model, sample, *args, **kwargs)


METHODS = {"encode": encode, "decode": decode, "forward": forward}
"""What replaces the model's own methods."""


def check_made(
    call: str, given: int, noun: str, made: int, made_noun: str, expected: int, more: str = ""
) -> None:
    """Refuse what is not as long as what the model was swapped to makes of its input."""
    if made != expected:
        raise InvalidInput(
            f"{call}: {given} {noun} became {made} {made_noun}, expected {expected}: a part of the model was "
            "replaced or compiled, or a hook copies its state; call handle.refresh(), or remove "
            f"the hook{more}"
        )


@contextmanager
def num_frames_of(link: Any, num_frames: int) -> Iterator[None]:
    """Let `decode` of the models of one swap return this many frames, in this thread."""
    token = _NUM_FRAMES.set((link, num_frames))
    try:
        yield
    finally:
        _NUM_FRAMES.reset(token)


def knows_first_chunk() -> bool:
    """Whether the first chunk is the one without a cache, not the one of an odd length."""
    return torch.compiler.is_compiling() or not _GUESSED.get()


def _others(
    method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, dict[str, Any]]:
    """Return `return_dict`, and the other arguments behind the frames by name."""
    others = dict(inspect.signature(method).bind(None, None, *args, **kwargs).arguments)
    for name in list(others)[:2]:  # the model and the frames
        del others[name]
    return others.pop("return_dict", True), others


def _asked(link: Any) -> int | None:
    found = _NUM_FRAMES.get()
    return found[1] if found is not None and found[0] is link else None


def _warn_once(link: Any, latents: int, held: int, shipped: int | None) -> None:
    if link.warned:
        return
    link.warned = True
    warnings.warn(
        f"{latents} latents decode to {held} frames here, where diffusers gives {shipped}: say how many "
        f"frames there are, decode(z, num_frames=n), or `with handle.num_frames(n):` around a pipeline call",
        stacklevel=4,
    )


def decoder_output(frames: Tensor) -> Any:
    """Return decoded frames as diffusers does."""
    from diffusers.models.autoencoders.vae import DecoderOutput

    return DecoderOutput(sample=frames)
