"""Coders whose own code is recorded: what the authors' repositories hold instead of diffusers' classes."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from causalvae_kernels import swap
from causalvae_kernels.coder import CallStep, OpStep
from tests.support import original_code as code

pytestmark = pytest.mark.one_backend


def _vae(name, dtype=torch.float64):
    return code.VAES[name]().eval().requires_grad_(False).to(dtype)


def _steps(name):
    return [step for step in ("encode", "decode") if hasattr(code.VAES[name](), step)]


def _input(step, frames, dtype=torch.float64, batch=1):
    if step == "encode":
        return torch.rand(batch, 3, frames, 10, 14, dtype=dtype) * 2 - 1
    return torch.randn(batch, 4, frames, 5, 7, dtype=dtype)


def _why_unread(handle):
    return {known.why for known in handle._link.coders.known.values() if known.schedule is None}


def _schedules(handle):
    return [known.schedule for known in handle._link.coders.known.values() if known.schedule is not None]


def _both(vae, handle, step, x):
    torch.manual_seed(5)
    ours = getattr(vae, step)(x)
    torch.manual_seed(5)
    with _taken_out(handle):
        theirs = getattr(vae, step)(x)
    return ours, theirs


class _taken_out:  # noqa: N801
    def __init__(self, handle):
        self.link = handle._link

    def __enter__(self):
        self.link.active = False

    def __exit__(self, *_):
        self.link.active = True


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("name", code.VAES)
def test_the_numbers_are_those_of_the_code(name, frames):
    """In float64, where nothing but a wrong reading shows; twice in a row, two clips at a time."""
    vae = _vae(name)
    handle = swap(vae, backend="aten")
    for step in _steps(name):
        count = frames | 1 if step == "encode" else frames
        for batch in (1, 2):
            ours, theirs = _both(vae, handle, step, _input(step, count, batch=batch))
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert _schedules(handle)
    assert not _why_unread(handle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", code.VAES)
def test_parity_in_each_dtype(name, dtype):
    """The error against float64 is at most twice that of the code itself; Winograd's counts in float32."""
    torch.manual_seed(3)
    exact, vae = _vae(name), _vae(name, dtype)
    vae.load_state_dict(exact.state_dict())
    exact.load_state_dict(vae.state_dict())
    handle = swap(vae)
    for step in _steps(name):
        x = _input(step, 5, dtype)
        torch.manual_seed(5)
        truth = getattr(exact, step)(x.double()) if "noise" not in name and "sides" not in name else None
        ours, theirs = _both(vae, handle, step, x)
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        truth = theirs.double() if truth is None else truth
        bound = (
            2 * (theirs.double() - truth).norm() + (4e-6 if dtype == torch.float32 else 2e-2) * truth.norm()
        )
        assert (ours.double() - truth).norm() <= bound
    assert not _why_unread(handle)


def test_what_is_read_of_caches_in_a_list():
    """Past, norms with SiLU, sums, both changes of resolution: nothing is left to the code but attention."""
    vae = _vae("caches in a list", torch.float32)
    handle = swap(vae)
    vae.decode(_input("decode", 3, torch.float32))
    first, *later = sorted(_schedules(handle), key=lambda s: s.since)
    for schedule in (first, *later):
        steps = [planned.step for planned in schedule.planned]
        ops = [s.op.name for s in steps if isinstance(s, OpStep)]
        assert "upsample_conv" in ops
        assert ops.count("rms_norm") == 6
        assert all(
            s.options == (0.0, "silu")
            for s in steps
            if isinstance(s, OpStep) and s.op.name == "rms_norm" and not s.path.endswith("1.norm")
        )
        called = {s.path for s in steps if isinstance(s, CallStep)}
        assert all(".1" in path for path in called), called  # the attention
    assert len(later) == 2  # behind one frame, and behind two


def test_what_is_read_of_caches_on_modules():
    vae = _vae("caches on modules", torch.float32)
    handle = swap(vae)
    vae.decode(_input("decode", 5, torch.float32))
    for schedule in _schedules(handle):
        steps = [planned.step for planned in schedule.planned]
        ops = [s.op.name for s in steps if isinstance(s, OpStep)]
        assert ops.count("spatial_norm") == 4
        assert "group_norm" not in ops
        assert "upsample_conv" in ops
        assert sum(isinstance(s, CallStep) for s in steps) == 1  # SiLU behind a sum


def test_lists_and_modules_hold_what_the_code_leaves_there():
    vae = _vae("caches in a list")
    handle = swap(vae, backend="aten")
    lists = [[None] * 7 for _ in range(2)]
    for taken_out, caches in zip((False, True), lists, strict=True):
        handle._link.active = not taken_out
        torch.manual_seed(0)
        for _ in range(3):
            vae.decoder(_input("decode", 1), caches, [0])
    handle._link.active = True
    for a, b in zip(*lists, strict=True):
        torch.testing.assert_close(a, b)
    vae = _vae("caches on modules")
    handle, x = swap(vae, backend="aten"), _input("decode", 2)
    held = []
    for active in (True, False):
        handle._link.active = active
        vae.decoder(x, last=False)
        vae.decoder(x[:, :, :1], last=False)
        held.append([m.past for m in vae.modules() if isinstance(m, code.KeepingConv)])
        assert vae.decoder.last_shape == (1, 4, 1, 5, 7)
        vae.decoder(x, last=True)
        assert all(m.past is None for m in vae.modules() if isinstance(m, code.KeepingConv))
    for a, b in zip(*held, strict=True):
        torch.testing.assert_close(a, b)


def test_an_interrupted_chunk_leaves_nothing_behind():
    vae = _vae("caches in a list")
    handle, x = swap(vae, backend="aten"), _input("decode", 3)
    expected = vae.decode(x)

    def interrupted(*_):
        raise KeyboardInterrupt

    for schedule in _schedules(handle):
        ((_, runs),) = schedule._ready.values()
        at = len(runs) // 2
        kept, runs[at] = runs[at], interrupted
        with pytest.raises(KeyboardInterrupt):
            vae.decode(x)
        runs[at] = kept
        torch.testing.assert_close(vae.decode(x), expected)
    caches, place = [None] * 7, [0]
    vae.decoder(x[:, :, :1], caches, [0])
    before = list(caches)
    second = sorted(_schedules(handle), key=lambda s: s.since)[1]
    ((_, runs),) = second._ready.values()
    kept, runs[-1] = runs[-1], interrupted
    with pytest.raises(KeyboardInterrupt):
        vae.decoder(x[:, :, 1:2], caches, place)
    runs[-1] = kept
    assert place == [0]
    assert all(a is b for a, b in zip(caches, before, strict=True))


def test_two_threads():
    vae = _vae("caches in a list")
    swap(vae, backend="aten")
    clips = [_input("decode", frames) for frames in (2, 4)]
    expected = [vae.decode(clip) for clip in clips]
    found = [None, None]

    def work(n):
        with torch.no_grad():
            for _ in range(5):
                found[n] = vae.decode(clips[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["caches in a list", "padding of all axes", "frames on both sides"])
def test_gradients(name):
    vae = _vae(name).train()
    for module in vae.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    vae.requires_grad_(True)
    handle, x = swap(vae, backend="aten"), _input("decode", 3).requires_grad_()
    found = []
    for active in (True, False):
        handle._link.active = active
        vae.zero_grad()
        x.grad = None
        torch.manual_seed(1)
        vae.decode(x).square().mean().backward()
        found.append([x.grad, *(p.grad for p in vae.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 4
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_what_is_hooked_is_called():
    vae = _vae("caches in a list")
    handle, x, calls = swap(vae, backend="aten"), _input("decode", 3), []
    expected = vae.decode(x)
    hook = vae.decoder.layers[0].layers[2].register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(vae.decode(x), expected)
    assert len(calls) == 3
    hook.remove()
    calls.clear()
    torch.testing.assert_close(vae.decode(x), expected)
    assert not calls
    assert handle.active


def test_weights_that_change_and_settings():
    vae = _vae("caches in a list")
    handle, x = swap(vae, backend="aten"), _input("decode", 3)
    vae.decode(x)
    vae.decoder.begin.weight.data *= 1.5
    vae.decoder.end[0].gamma = nn.Parameter(torch.rand(8, 1, 1, 1, dtype=torch.float64), requires_grad=False)
    vae.decoder.layers[0].layers[0] = code.Rms(16, bias=True).double().requires_grad_(False)
    ours, theirs = _both(vae, handle, "decode", x)
    torch.testing.assert_close(ours, theirs)


def test_copies_and_pickles():
    vae = _vae("caches on modules")
    swap(vae, backend="aten")
    x = _input("decode", 3)
    expected = vae.decode(x)
    torch.testing.assert_close(copy.deepcopy(vae).decode(x), expected)


class _Two(nn.Module):
    """Two convolutions, and something between them."""

    def __init__(self, between):
        super().__init__()
        self.one, self.two = code.PaddingConv(3, 4), code.PaddingConv(4, 3)
        self.between, self.count, self.table = between, 0, [1.0, 2.0]

    def forward(self, x):
        return self.two(self.between(self, self.one(x)))


def _counts(module, x):
    module.table[0] += 1.0
    return x * module.table[0]


def _sets(module, x):
    module.count += 1
    return x


UNREADABLE = {
    "looks at values": lambda m, x: x if x.sum() > 0 else -x,
    "takes one out": lambda m, x: x + x.mean().item(),
    "counts its calls": _counts,
    "counts on itself": _sets,
    "draws like an activation": lambda m, x: x + 0 * torch.randn_like(x),
    "writes into its input": lambda m, x: x[:, :, :1].add_(1) * 0 + x,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_recorded_runs_as_it_is(name):
    vae = nn.Sequential()
    vae = _Two(UNREADABLE[name]).double().eval().requires_grad_(False)
    handle, x = swap(vae, backend="aten"), torch.randn(1, 3, 4, 5, 6, dtype=torch.float64)
    other = copy.deepcopy(vae)
    swap(other).restore()
    for _ in range(3):
        torch.testing.assert_close(vae(x), other(x))
    (why,) = _why_unread(handle)
    assert not _schedules(handle)
    (entry,) = [entry for entry in handle.report if entry.name == ""]
    assert not entry.replaced
    assert why
    assert entry.reason == f"its modules run one by one: {why}"


def test_dropout_that_is_on_draws_what_the_code_draws():
    vae = _vae("caches in a list").train()
    handle = swap(vae, backend="aten")
    ours, theirs = _both(vae, handle, "decode", _input("decode", 2))
    assert not _schedules(handle)
    torch.testing.assert_close(ours, theirs)


READABLE = {
    "a list of words": lambda m, x: F.interpolate(x, scale_factor=(1.0, 3.0, 3.0))[..., ::3, 1::3],
    "a frame in front of all": lambda m, x: torch.cat([x[:, :, 1:2], x, x[:, :, -1:]], 2),
    "in place, a fresh sum": lambda m, x: (x + 1).add_(x).mul_(2.0),
    "a view of a view": lambda m, x: x.flatten(3).unflatten(3, x.shape[3:]).transpose(3, 4).transpose(3, 4),
    "channels in turns": lambda m, x: torch.stack(x.chunk(2, dim=1), 2).flatten(1, 2),
    "an input of two readers": lambda m, x: F.silu(x) + x,
    "half a clip": lambda m, x: x[:, :, ::2],
    "channels last": lambda m, x: x.permute(0, 2, 3, 4, 1).softmax(-1).permute(0, 4, 1, 2, 3),
    "a batch of frames": lambda m, x: code.video(F.avg_pool2d(code.images(x), 3, 1, 1), x.shape[0]),
    "more pixels at one side": lambda m, x: F.pad(x, (0, 2, 1, 0)),
    "negative padding": lambda m, x: F.pad(x, (0, -1)),
    "frames backwards": lambda m, x: x.flip(2),
    "a mask that is written": lambda m, x: (
        x * torch.zeros_like(x[:, :1]).index_fill(2, torch.tensor([0]), 1.0)
    ),
}


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("name", READABLE)
def test_what_may_stand_between_convolutions(name, frames):
    if name == "a frame in front of all" and frames == 1:
        frames = 3
    vae = _Two(READABLE[name]).double().eval().requires_grad_(False)
    handle, x = swap(vae, backend="aten"), torch.randn(2, 3, frames, 6, 7, dtype=torch.float64)
    ours = vae(x)
    handle.restore()
    torch.testing.assert_close(ours, vae(x))
    swap(vae, backend="aten")
    vae(x)


@pytest.mark.exhaustive
@pytest.mark.parametrize("frames", range(1, 18))
@pytest.mark.parametrize("name", code.VAES)
def test_every_number_of_frames(name, frames):
    test_the_numbers_are_those_of_the_code(name, frames)
