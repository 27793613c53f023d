"""`encode_session`, `decode_session`: the numbers of one call for any split; a state that is a value."""

from __future__ import annotations

import copy
import functools
import pickle
import random
import threading
import weakref

import pytest
import torch

from causalvae_kernels import InvalidInput, restore, swap
from tests.support.tiny_vaes import TINY_VAES

pytest.importorskip("diffusers")
FAMILIES = ["CogVideoX", "Wan2.1", "Wan2.2", "QwenImage"]


@functools.cache
def _handle(name):
    """An adapted model that no test changes; latents go one by one, as in a session."""
    torch.manual_seed(0)
    model = TINY_VAES[name].build().eval().requires_grad_(False)
    return swap(model, frames="any", chunk="as_is")


def _clip(name, frames, batch=1):
    channels = _handle(name)._family.chunks.channels(_handle(name).model)[0]
    return torch.randn(batch, channels, frames, 32, 48)


def _parts(x, rng):
    """A random split."""
    parts, start = [], 0
    while start < x.shape[2]:
        length = rng.randint(1, 6)
        parts.append(x[:, :, start : start + length])
        start += length
    return parts


def _same(name, found, wanted):
    """CogVideoX gives the same bits; Wan's projections to and from latents see other numbers of frames."""
    if name == "CogVideoX":
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def _run(session, parts):
    return torch.cat([*map(session.push, parts), session.finish()], dim=2)


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 9, 16, 18])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_split_gives_the_numbers_of_one_call(name, frames):
    handle, rng = _handle(name), random.Random(frames)
    clip = _clip(name, frames)
    latents = handle.model.encode(clip).latent_dist.mode()
    decoded = handle.model.decode(latents, num_frames=frames).sample
    for _ in range(2):
        session = handle.encode_session(frames)
        _same(name, _run(session, _parts(clip, rng)), latents)
        assert session.num_frames == frames
        _same(name, _run(handle.decode_session(frames), _parts(latents, rng)), decoded)
    splits = [_run(handle.encode_session(frames), parts) for parts in (clip.split(1, 2), [clip])]
    assert torch.equal(*splits)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_a_number_of_frames(name):
    """The numbers of a stream; all that the latents hold is returned."""
    handle, rng = _handle(name), random.Random(1)
    clip = _clip(name, 14)
    latents = _run(handle.encode_session(), _parts(clip, rng))
    assert torch.equal(latents, torch.cat(list(handle.encode_stream([clip])), dim=2))
    session = handle.decode_session()
    decoded = _run(session, _parts(latents, rng))
    assert torch.equal(decoded, torch.cat(list(handle.decode_stream([latents])), dim=2))
    assert session.num_frames == decoded.shape[2] == 4 * latents.shape[2] - 3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_goes_its_own_way(name):
    handle = _handle(name)
    clips = [_clip(name, 20) for _ in range(2)]
    clips[1][:, :, :11] = clips[0][:, :, :11]
    wanted = [_run(handle.encode_session(20), [clip]) for clip in clips]
    one = handle.encode_session(20)
    begun = one.push(clips[0][:, :, :11])
    two = one.copy()
    for session, clip, latents in ((one, clips[0], wanted[0]), (two, clips[1], wanted[1])):
        assert torch.equal(torch.cat([begun, _run(session, [clip[:, :, 11:]])], dim=2), latents)
    z = wanted[0]
    one = handle.decode_session()
    begun = one.push(z[:, :, :3])
    two = one.copy()
    assert torch.equal(_run(one, [z[:, :, 3:]]), _run(two, [z[:, :, 3:]]))


def test_a_copy_draws_the_same_numbers():
    handle, clip = _handle("Wan2.1"), _clip("Wan2.1", 9)
    generator = torch.Generator().manual_seed(3)
    one = handle.encode_session(9, sample_posterior=True, generator=generator)
    one.push(clip[:, :, :5])
    two = one.copy()
    assert torch.equal(one.push(clip[:, :, 5:]), two.push(clip[:, :, 5:]))


@pytest.mark.parametrize("name", ["CogVideoX", "Wan2.1"])
def test_pickled_and_carried_on(name):
    handle, clip = _handle(name), _clip(name, 17)
    latents = _run(handle.encode_session(17), [clip])
    session = handle.encode_session(17)
    begun = session.push(clip[:, :, :10])
    other = pickle.loads(pickle.dumps(session))
    assert torch.equal(torch.cat([begun, _run(other, [clip[:, :, 10:]])], dim=2), latents)
    assert torch.equal(torch.cat([begun, _run(session, [clip[:, :, 10:]])], dim=2), latents)


@pytest.mark.parametrize("name", ["CogVideoX", "Wan2.1"])
def test_several_in_threads_on_one_model(name):
    handle = _handle(name)
    clips = [_clip(name, frames, batch) for frames, batch in ((9, 1), (13, 2), (17, 1))]
    wanted = [_run(handle.encode_session(), [clip]) for clip in clips]
    found = [None] * len(clips)
    begin = threading.Barrier(len(clips))

    def encode(number):
        begin.wait()
        with torch.no_grad():
            found[number] = _run(handle.encode_session(), clips[number].split(1, dim=2))

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, found, wanted))


def test_a_part_that_does_not_fit_changes_nothing():
    handle, clip = _handle("CogVideoX"), _clip("CogVideoX", 9)
    session = handle.encode_session(9)
    session.push(clip[:, :, :4])
    for wrong, sentence in (
        (clip[:, :, :1, :16], "after the first 4 have shape"),
        (clip[:, :, :1].double(), "expected .*float32"),
        (clip[:, :, :6], "got more than expected, at least 10, expected 9"),
        ("frames", "is a str"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            session.push(wrong)
    with pytest.raises(InvalidInput, match="ended after 4, expected 9"):
        session.finish()
    latents = torch.cat([session.push(clip[:, :, 4:]), session.finish()], dim=2)
    assert torch.equal(latents, _run(handle.encode_session(9), [clip]))
    for call in (session.finish, session.copy, lambda: session.push(clip)):
        with pytest.raises(InvalidInput, match="this session is closed"):
            call()


def test_what_is_refused_at_once():
    handle = swap(copy.deepcopy(_handle("CogVideoX").model), frames="any")
    with pytest.raises(InvalidInput, match="num_frames"):
        handle.decode_session(0)
    with pytest.raises(InvalidInput, match=r"finish\(\) without a push"):
        handle.decode_session().finish()
    session = handle.encode_session()
    restore(handle.model)
    with pytest.raises(InvalidInput, match="restored while it was open"):
        session.push(_clip("CogVideoX", 9))
    with pytest.raises(InvalidInput, match="was restored"):
        handle.decode_session()
    with pytest.raises(InvalidInput, match='frames="any"'):
        swap(handle.model).decode_session()
    with pytest.raises(InvalidInput, match="no session for the models of this family"):
        swap(TINY_VAES["Mochi"].build(), frames="any").decode_session()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("name", ["CogVideoX", "Wan2.1"])
def test_an_interrupted_chunk_ends_the_session_alone(name, error):
    handle, clip = _handle(name), _clip(name, 17)
    latents = _run(handle.encode_session(17), [clip])
    other, broken = handle.encode_session(17), handle.encode_session(17)
    begun = other.push(clip[:, :, :9])
    broken.push(clip[:, :, :9])
    conv = handle.model.encoder.conv_out
    hook = conv.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error("in the middle")))
    try:
        with pytest.raises(error):
            broken.push(clip[:, :, 9:])
    finally:
        hook.remove()
    with pytest.raises(InvalidInput, match="this session is closed"):
        broken.push(clip[:, :, 9:])
    assert torch.equal(torch.cat([begun, _run(other, [clip[:, :, 9:]])], dim=2), latents)


def test_no_more_than_a_chunk_is_held():
    handle, held = _handle("CogVideoX"), []
    session = handle.encode_session()
    for _ in range(8):
        part = _clip("CogVideoX", 5)
        held.append(weakref.ref(part.untyped_storage()))
        session.push(part)
        del part
        assert sum(ref() is not None for ref in held) <= 1
        assert session.queue._held < 9
    session.close()
    assert not session._caches and not session.queue._pieces
