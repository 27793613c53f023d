"""`handle.encode` and `handle.decode`: one clip in one call, into memory that is allocated once.

diffusers collects the chunks of a clip and concatenates them: for a moment the result is there twice. Here
each chunk is written where it belongs, converted on the way, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import memory
from ..core.checks import check_count, check_video
from ..core.errors import InvalidInput
from ..temporal import frame_rule
from ..temporal.schedule import latents_of
from .session import ChunkCodec, Session, decode_session, encode_session
from .tiling import model_for

OnChunk = Callable[[int, int, Tensor], object]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)


@torch.no_grad()
def decode(
    model: nn.Module,
    link: Any,
    codec: ChunkCodec | None,
    latents: Tensor,
    *,
    num_frames: int | None = None,
    **target: Any,
) -> Tensor:
    """Decode latents, shape (B, C, l, h, w), without gradients.

    Args:
        model: The model.
        link: Of its swap.
        codec: Of its family; None: it is one chunk.
        latents: What to decode.
        num_frames: How many frames to return; default: all that the latents hold.
        **target: `out`, memory of shape (B, C, T, H, W) for the frames. Or `device` and `dtype` of fresh
            memory, which is pinned on a CPU if the model is on a GPU; default: as the latents.
            `torch.uint8` is (x + 1) * 127.5, rounded, of x clamped to [-1, 1].
            `on_chunk(index, total, frames)` is called with each part of the result once it is written; if it
            raises, the call ends with that. `progress` shows a bar on stderr.

    Returns:
        The frames: `out`, if it is given.

    Raises:
        InvalidInput: The swap was made without `frames="any"`; an argument does not fit.
    """
    check_video("decode", "latents", latents)
    rule = frame_rule(model)
    held = rule.num_decoded(latents.shape[2], adapted=True)
    frames = held if num_frames is None else check_count("decode", "num_frames", num_frames, held)
    if codec is None:
        _check(link, "decode")
        return _as_one(lambda: model.decode(latents, num_frames=frames).sample, latents, "decode", **target)
    model = model_for(model, link, "decode", latents) if link.tiling == "auto" else model
    per_pass = codec.per_pass(model, link, "decode", latents)
    session = decode_session(model, link, codec, num_frames=frames, call="decode", per_pass=per_pass)
    channels, ratio = codec.channels(model)[0], codec.spatial_ratio(model)
    shape = (latents.shape[0], channels, frames, latents.shape[3] * ratio, latents.shape[4] * ratio)
    return _written(session, latents, shape, "decode", **target)


@torch.no_grad()
def encode(
    model: nn.Module,
    link: Any,
    codec: ChunkCodec | None,
    frames: Tensor,
    *,
    sample_posterior: bool = False,
    generator: torch.Generator | None = None,
    **target: Any,
) -> Tensor:
    """Encode any number of frames, shape (B, C, T, H, W), without gradients.

    Args:
        model: The model.
        link: Of its swap.
        codec: Of its family; None: it is one chunk.
        frames: What to encode.
        sample_posterior: Draw latents, rather than take the mode. Noise is drawn chunk by chunk.
        generator: Of random numbers.
        **target: As in `decode`.

    Returns:
        The latents, not scaled: `out`, if it is given.

    Raises:
        InvalidInput: As `decode`.
    """
    check_video("encode", "frames", frames)
    if codec is None:
        _check(link, "encode")

        def run() -> Tensor:
            posterior = model.encode(frames).latent_dist
            return posterior.sample(generator) if sample_posterior else posterior.mode()

        return _as_one(run, frames, "encode", **target)
    model = model_for(model, link, "encode", frames) if link.tiling == "auto" else model
    session = encode_session(
        *(model, link, codec),
        num_frames=frames.shape[2],
        sample_posterior=sample_posterior,
        generator=generator,
        call="encode",
        per_pass=codec.per_pass(model, link, "encode", frames),
    )
    batch, _, count, height, width = frames.shape
    ratio = codec.spatial_ratio(model)
    latents = latents_of(count, frame_rule(model).temporal_compression_ratio)
    shape = (batch, codec.channels(model)[1], latents, height // ratio, width // ratio)
    return _written(session, frames, shape, "encode", **target)


def _check(link: Any, call: str) -> None:
    if link.frames != "any":
        raise InvalidInput(f'{call}: this swap keeps diffusers\' counts; call swap(vae, frames="any")')
    if not link.active:
        raise InvalidInput(f"{call}: this swap was restored; call swap() again")


def _written(
    session: Session,
    x: Tensor,
    shape: tuple[int, ...],
    call: str,
    *,
    on_chunk: OnChunk | None = None,
    progress: bool = False,
    **target: Any,
) -> Tensor:
    out = _target(call, x, shape, **target)
    with session, _bar(call, progress) as advance:
        session.queue.put(x)
        session.queue.end()
        total, start = session.queue.count or 1, 0
        for index in range(total):
            made = session.next_chunk()
            part = out.narrow(2, start, made.shape[2])
            _convert(made, part)
            start += made.shape[2]
            advance(index, total)
            if on_chunk is not None:
                on_chunk(index, total, part)
    return out


def _as_one(
    run: Callable[[], Tensor],
    x: Tensor,
    call: str,
    *,
    on_chunk: OnChunk | None = None,
    progress: bool = False,
    **target: Any,
) -> Tensor:
    _target(call, x, None, **target)
    with _bar(call, progress) as advance:
        made = run()
        out = _target(call, made, tuple(made.shape), **target)
        _convert(made, out)
        advance(0, 1)
    if on_chunk is not None:
        on_chunk(0, 1, out)
    return out


def _target(
    call: str,
    like: Tensor,
    shape: tuple[int, ...] | None,
    *,
    out: Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    """Return memory for the result; check it alone, as far as that is possible, where no shape is given."""
    if out is not None and (device is not None or dtype is not None):
        raise InvalidInput(f"{call}: got out and device or dtype, expected one of them: out has its own")
    if out is not None and not isinstance(out, Tensor):
        raise InvalidInput(f"{call}: out is a {type(out).__name__}, expected a tensor")
    found = like.dtype if dtype is None and out is None else dtype if out is None else out.dtype
    if found not in (*_DTYPES, like.dtype):
        words = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
        raise InvalidInput(f"{call}: dtype is {found}, expected one of {words}")
    if shape is None:
        return None
    if out is not None:
        if tuple(out.shape) != shape:
            raise InvalidInput(f"{call}: out has shape {tuple(out.shape)}, expected {shape}")
        return out
    target = torch.device(like.device if device is None else device)
    if target.type == "cpu" and like.device.type == "cuda":
        return torch.empty(shape, dtype=found, pin_memory=True)
    return memory.empty(shape, dtype=found, device=target)


def _convert(made: Tensor, out: Tensor) -> None:
    """Write what a chunk made."""
    if out.dtype == torch.uint8 and made.dtype.is_floating_point:
        made = made.float().clamp(-1, 1).add_(1).mul_(127.5).round_()
    out.copy_(made)


@contextmanager
def _bar(call: str, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Give a function that is told which chunk of how many is done."""
    if not shown:
        yield lambda index, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(call, total=None)
        yield lambda index, total: bar.update(task, total=total, completed=index + 1)
