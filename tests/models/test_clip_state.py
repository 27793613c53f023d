"""What a model keeps between chunks: every clip begins without it, whatever ended the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from causalvae_kernels import InvalidInput, swap
from causalvae_kernels.parity import round_trip
from tests.support import wan_models
from tests.support.cover import quick, quick_rows
from tests.support.families import HERE, build, clip_of, valid

MAGVIT = "Magvit(EasyAnimate)"
STREAMS = ("CogVideoX", "Wan2.1", "Wan2.2", "QwenImage")
CACHED = ("2.1", "2.2", "qwen")
HOOKED = ("encoder", "decoder", "encoder.mid_block", "decoder.mid_block.resnets.1", "decoder.up_blocks.1")
# All of them in Wan 2.1; the others hand their caches to coders and to blocks in ways of their own.
QUICK_HOOKED = [
    *product(["2.1"], HOOKED),
    *product(["2.2", "qwen"], ["encoder", "decoder.mid_block.resnets.1"]),
]


class _Interrupted(TorchDispatchMode):
    """Raises in front of the n-th operator of the framework; counts them."""

    def __init__(self, at: int = -1, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.at, self.error, self.count = at, error, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        if self.count == self.at:
            raise self.error
        return func(*args, **(kwargs or {}))


def interrupt(run: Callable[[], object]) -> Iterator[None]:
    """Interrupt calls of `run` early, in the middle and late, each in another way; yield behind each."""
    with _Interrupted() as whole:
        run()
    for part, error in ((0.04, KeyboardInterrupt), (0.5, torch.OutOfMemoryError), (0.9, RuntimeError)):
        with pytest.raises(error), _Interrupted(int(part * whole.count), error):
            run()
        yield


def kept(model: nn.Module) -> list[str]:
    """Return the attributes in which frames are kept, of the model and of its modules."""

    def holds(value: object) -> bool:
        if isinstance(value, list | tuple | dict):
            return any(holds(part) for part in (value.values() if isinstance(value, dict) else value))
        return isinstance(value, torch.Tensor)

    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in ("_parameters", "_buffers") and holds(value)
    ]


@pytest.mark.costly
@pytest.mark.parametrize("step", ["encode", "decode"])
@pytest.mark.parametrize("options", quick([{}, {"frames": "any"}], [{}]), ids=str)
@pytest.mark.parametrize("name", HERE)
@torch.no_grad()
def test_after_a_call_that_failed_the_next_one_is_right(name, options, step):
    vae, clip = build(name), clip_of(HERE[name], valid(name, 17))
    swap(vae, **options)
    latents, frames = round_trip(vae, clip)
    run = {
        "encode": lambda: vae.encode(clip).latent_dist.mode(),
        "decode": lambda: vae.decode(latents).sample,
    }
    for _ in interrupt(run[step]):
        assert not kept(vae)
        assert torch.equal(run[step](), latents if step == "encode" else frames)
    # An encoder's state is no decoder's, and neither spoils the other.
    assert torch.equal(run["decode"](), frames) and torch.equal(run["encode"](), latents)


@pytest.mark.costly
@pytest.mark.parametrize("step", ["encode", "decode"])
@pytest.mark.parametrize("name", STREAMS)
@torch.no_grad()
def test_after_a_stream_that_failed_the_next_one_is_right(name, step):
    vae, clip = build(name), clip_of(HERE[name], 17)
    handle = swap(vae, frames="any")
    latents, frames = round_trip(vae, clip)
    run = {
        "encode": lambda: torch.cat(list(handle.encode_stream([clip], num_frames=17)), dim=2),
        "decode": lambda: torch.cat(list(handle.decode_stream([latents], num_frames=17)), dim=2),
    }[step]
    expected = run()
    for _ in interrupt(run):
        assert not kept(vae)
        assert torch.equal(run(), expected)
        assert all(torch.equal(a, b) for a, b in zip(round_trip(vae, clip), (latents, frames), strict=True))


@torch.no_grad()
def test_magvit_that_was_interrupted_before_it_was_swapped():
    vae, clip = build(MAGVIT), clip_of(HERE[MAGVIT], 9)
    expected = round_trip(build(MAGVIT), clip)
    vae.encoder(clip[:, :, :1])
    vae.decoder(expected[0][:, :, :1])
    del vae.encoder.conv_in.prev_features  # as an interrupt within its own method leaves it
    with swap(vae, precision="exact"):
        assert all(torch.equal(a, b) for a, b in zip(round_trip(vae, clip), expected, strict=True))


@torch.no_grad()
def test_magvit_decodes_slice_by_slice():
    """The unmodified model takes the end of one slice for the beginning of the next, and fails."""
    vae, clip = build(MAGVIT), clip_of(HERE[MAGVIT], 9, batch=3)
    vae.enable_slicing()
    with swap(vae):
        latents, frames = round_trip(vae, clip)
        alone = [vae.decode(z).sample for z in latents.split(1)]
    assert torch.equal(frames, torch.cat(alone))


@pytest.mark.costly
@pytest.mark.parametrize("name", [*CACHED, "qwen 2.1"])
@torch.no_grad()
def test_a_wan_model_in_four_threads(name):
    """The class keeps the state of a clip on the model, where another thread finds it."""
    frames = 1 if name == "qwen 2.1" else 9
    vae = wan_models.build(name)
    channels = 4 if name == "qwen 2.1" else 3
    clips = [torch.rand(1, channels, frames, 32, 32) for _ in range(4)]
    swap(vae)
    expected = [round_trip(vae, clip) for clip in clips]
    found: list[list[Any]] = [[] for _ in clips]

    def work(n: int) -> None:
        for _ in range(3):
            found[n].append(round_trip(vae, clips[n]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pairs, (latents, decoded) in zip(found, expected, strict=True):
        assert len(pairs) == 3
        assert all(torch.equal(a, latents) and torch.equal(b, decoded) for a, b in pairs)


@contextmanager
def aligned(module: nn.Module) -> Iterator[None]:
    """A hook of accelerate, which copies every list that is passed through it."""
    hooks = pytest.importorskip("accelerate").hooks
    hooks.add_hook_to_module(module, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))
    try:
        yield
    finally:
        hooks.remove_hook_from_module(module)


@pytest.mark.parametrize(("name", "path"), quick_rows(list(product(CACHED, HOOKED)), QUICK_HOOKED))
@torch.no_grad()
def test_the_state_passes_the_hooks_of_accelerate(name, path):
    vae, clip = wan_models.build(name), torch.rand(1, 3, 9, 32, 32)
    latents, frames = round_trip(wan_models.build(name), clip)

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        return a.shape == b.shape and torch.allclose(a, b, atol=1e-4)

    handle = swap(vae, frames="any")
    with aligned(vae.get_submodule(path)):
        found = round_trip(vae, clip)
        assert same(found[0], latents) and same(found[1], frames)
        streamed = torch.cat(list(handle.encode_stream(clip.split(3, dim=2))), dim=2)
        assert same(streamed, latents)
        assert same(torch.cat(list(handle.decode_stream(latents.split(1, dim=2))), dim=2), frames)


@pytest.mark.parametrize("call", ["encode", "decode", "encode_stream", "decode_stream"])
@torch.no_grad()
def test_a_lost_state_is_refused_by_every_entry(call):
    """A wrapper that hands on a copy of the cache: the updates are lost, and frames with them."""
    vae, clip = wan_models.build("2.1"), torch.rand(1, 3, 9, 32, 32)
    handle = swap(vae, frames="any")
    latents, _ = round_trip(vae, clip)
    for coder in (vae.encoder, vae.decoder):
        own = coder.forward

        def copying(x: torch.Tensor, feat_cache: Any, feat_idx: Any, own: Any = own, **options: Any) -> Any:
            return own(x, feat_cache=[*feat_cache], feat_idx=[*feat_idx], **options)

        coder.forward = copying
    runs = {
        "encode": lambda: vae.encode(clip),
        "decode": lambda: vae.decode(latents),
        "encode_stream": lambda: list(handle.encode_stream([clip])),
        "decode_stream": lambda: list(handle.decode_stream([latents])),
    }
    with pytest.raises(InvalidInput, match=rf"{call}: .* became \d+ .*, expected .*remove the hook"):
        runs[call]()
