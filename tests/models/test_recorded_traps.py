"""Code that a careless record would get wrong: aliases, side effects, memory that is still looked at."""

from __future__ import annotations

import collections
import copy
import functools
import random
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from causalvae_kernels import swap
from causalvae_kernels.core import native
from tests.support import original_code as code

pytestmark = pytest.mark.one_backend


class Trap(nn.Module):
    """Convolutions around some code."""

    def __init__(self, trap, channels=4):
        super().__init__()
        self.one, self.two = code.PaddingConv(3, channels), code.PaddingConv(channels, 3)
        self.c, self.d = code.PaddingConv(channels, channels), code.PaddingConv(channels, channels)
        self.trap, self.last, self.past = trap, None, None

    def forward(self, x):
        return self.two(self.trap(self, self.one(x)))


def _views_beside_an_activation(m, x):
    x = m.c(x)
    v = x.flatten(3)
    return F.silu(x) + v.unflatten(3, x.shape[3:]).tanh()


def _tokens(m, x):
    x = m.c(x)
    tokens = x.permute(0, 2, 3, 4, 1).reshape(x.shape[0], -1, x.shape[1])
    return F.silu(x) + tokens.mean(1)[:, :, None, None, None]


def _half_of_a_sum(m, x):
    y = m.c(x)
    v = y[:, :, :, ::2]
    return (y + F.silu(y)) * v.mean()


def _a_norm_that_waits(m, x):
    s = m.c(x)
    h = F.group_norm(x, 2) * s
    t = F.silu(s)
    return (h + x) + t


def _what_a_norm_reads(m, x):
    s = m.c(x)
    b = F.silu(m.d(x))
    h = F.group_norm(x, 2) * s
    t = F.silu(x)
    return (h + b) + t


MEMORY = {f.__name__: f for f in (_views_beside_an_activation, _tokens, _half_of_a_sum, _a_norm_that_waits)}
MEMORY["_what_a_norm_reads"] = _what_a_norm_reads


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("backend", [None, "cpu"])
@pytest.mark.parametrize("name", MEMORY)
def test_memory_that_is_still_looked_at(name, backend, batch):
    module = Trap(MEMORY[name], 32).eval().requires_grad_(False)
    x = torch.randn(batch, 3, 3, 9, 10)
    expected = module(x)
    swap(module, backend=backend)
    for _ in range(2):
        torch.testing.assert_close(module(x), expected, rtol=1e-3, atol=1e-4)


def _size(m, x):
    y = x if m.last is None else x * 2
    m.last = x.shape
    return y


def _list_on_itself(m, x):
    p = m.past[0]
    m.past[0] = x[:, :, -1:].clone()
    return x if p is None else x + p


def _nested(m, x):
    cache = m.past["a"]
    p, cache[0] = cache[0], x[:, :, -1:].clone()
    return x if p is None else x + p


def _object(m, x):
    p, m.past.kept = m.past.kept, x[:, :, -1:].clone()
    return x if p is None else x + p


def _buffer(m, x):
    p, m.seen = m.seen, x[:, :, -1:].clone()
    return x + p


@functools.lru_cache
def _mask(n, dtype):
    return torch.ones(n, n, dtype=dtype).tril()


def _memoised(m, x):
    y = x.flatten(2)
    return (y @ _mask(y.shape[2], x.dtype)).unflatten(2, x.shape[2:])


def _noise_without_a_device(m, x):
    return x + torch.randn(x.shape, dtype=x.dtype)


def _dice(m, x):
    return x * random.randrange(1000)


def _grows(m, x):
    t = torch.zeros(1, dtype=x.dtype)
    for _ in range(3):
        t += 1
        x = x * t
    return x


def _einsum(m, x):
    h = x + 1
    torch.einsum("bcthw->bthwc", h).mul_(2)
    return h


SIDE_EFFECTS = {
    "a size is remembered": (_size, {}),
    "a list on the module": (_list_on_itself, {"past": [None]}),
    "a list in a dictionary": (_nested, {"past": {"a": [None]}}),
    "a deque": (_list_on_itself, {"past": collections.deque([None])}),
    "an object": (_object, {"past": types.SimpleNamespace(kept=None)}),
    "a buffer is exchanged": (_buffer, {"seen": torch.zeros(1, 4, 1, 6, 7, dtype=torch.float64)}),
    "a mask that is kept elsewhere": (_memoised, {}),
    "noise without a device": (_noise_without_a_device, {}),
    "dice": (_dice, {}),
    "a constant that grows": (_grows, {}),
    "an alias that is changed": (_einsum, {}),
    "strides": (lambda m, x: (x * 2).as_strided(x.shape, x.stride()), {}),
    "a layout for complex numbers": (
        lambda m, x: torch.view_as_real(
            torch.view_as_complex((x * 1.5).reshape(*x.shape, 1).repeat(1, 1, 1, 1, 1, 2))
        ).sum(-1),
        {},
    ),
    "norm kept in a list": (lambda m, x: F.silu(m.past.append(h := F.group_norm(x, 2)) or h), {"past": []}),
}


@pytest.mark.parametrize("name", SIDE_EFFECTS)
def test_code_with_side_effects(name):
    """Values, what is left on the module, and what is drawn afterwards are those of the code."""
    trap, settings = SIDE_EFFECTS[name]
    module = Trap(trap).double().eval().requires_grad_(False)
    for setting, value in settings.items():
        if isinstance(value, torch.Tensor):
            module.register_buffer(setting, value)
        else:
            setattr(module, setting, value)
    plain = copy.deepcopy(module)
    swap(module, backend="aten")
    for frames in (4, 4, 4, 2):
        x = torch.randn(1, 3, frames, 6, 7, dtype=torch.float64)
        found = []
        for model in (module, plain):
            torch.manual_seed(2)
            random.seed(2)
            found.append((model(x), torch.rand(1), random.random()))
        torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
    assert all(not t.is_meta for t in (*module.buffers(), *module.parameters()))
    if trap is _size:
        assert module.last == plain.last


HANDLERS = {
    "split by sections": lambda m, x: torch.cat(x.tensor_split(2, dim=2)[::-1], 2),
    "split by indices": lambda m, x: torch.cat(x.tensor_split((1, 3), dim=2)[::-1], 2),
    "a tenth larger": lambda m, x: F.interpolate(x, scale_factor=(1.0, 1.1, 1.1)),
    "longer by a fraction": lambda m, x: F.interpolate(x, scale_factor=(1.2, 1, 1)),
    "a size": lambda m, x: F.interpolate(x, size=(x.shape[2], 12, 14)),
    "turned and reshaped": lambda m, x: x.transpose(3, 4).reshape(x.shape),
    "first axes turned": lambda m, x: x.permute(2, 1, 0, 3, 4).reshape(x.shape),
    "zeros parted": lambda m, x: torch.cat(F.pad(x, (0, 0, 0, 0, 1, 0)).chunk(2, dim=1), 1),
    "first one aside": lambda m, x: torch.cat([F.silu(x[:, :, :1]), F.silu(x[:, :, 1:])], 2),
    "gate by keyword": lambda m, x: x * torch.sigmoid(input=x),
    "images of a batch": lambda m, x: code.video(
        F.silu(code.images(x))
        + F.conv2d(
            F.avg_pool2d(code.images(x), 3, 1, 1), m.one.conv.weight[:4, :1, 0].expand(4, 4, 3, 3), padding=1
        ),
        x.shape[0],
    ),
    "norm of a view": lambda m, x: F.silu(x.view_as(F.group_norm(x, 2))),
}


@pytest.mark.parametrize("frames", [1, 3, 6])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", HANDLERS)
def test_calls_in_unusual_ways(name, batch, frames):
    module = Trap(HANDLERS[name]).double().eval().requires_grad_(False)
    x = torch.randn(batch, 3, frames, 6, 7, dtype=torch.float64)
    try:
        expected = module(x)
    except RuntimeError:
        pytest.skip("the code itself fails")
    swap(module, backend="aten")
    for _ in range(2):
        torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)


def test_channels_in_turns_that_are_also_read_as_they_are():
    def trap(m, x):
        a = x.chunk(2, 1)
        w = torch.stack(a, 3).reshape(x.shape[0], 2, 2 * x.shape[2], *x.shape[3:])
        return torch.cat([F.silu(w) + 1] * 2, 1) * a[0].mean()

    module = Trap(lambda m, x: trap(m, m.c(x))).double().eval().requires_grad_(False)
    x = torch.randn(1, 3, 2, 6, 7, dtype=torch.float64)
    expected = module(x)
    swap(module, backend="aten")
    torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)


def test_a_buffer_that_comes_and_weights_that_part():
    module = Trap(lambda m, x: x if m.shift is None else x + m.shift).double().eval().requires_grad_(False)
    module.register_buffer("shift", None)
    module.c.conv.weight = module.d.conv.weight
    module.trap = lambda m, x: m.d(m.c(x)) if m.shift is None else m.d(m.c(x)) + m.shift
    plain = copy.deepcopy(module)
    swap(module, backend="aten")
    x = torch.randn(1, 3, 2, 6, 7, dtype=torch.float64)
    changes = (
        lambda m: None,
        lambda m: setattr(m, "shift", torch.ones(1, dtype=torch.float64)),
        lambda m: setattr(
            m.c.conv, "weight", nn.Parameter(torch.ones_like(m.c.conv.weight), requires_grad=False)
        ),
    )
    for change in changes:
        change(module)
        change(plain)
        torch.testing.assert_close(module(x), plain(x), rtol=1e-10, atol=1e-10)


def test_threads_that_meet_new_shapes():
    module = Trap(lambda m, x: F.silu(x)).double().eval().requires_grad_(False)
    plain, failed = copy.deepcopy(module), []
    swap(module, backend="aten")

    def work(n):
        with torch.no_grad():
            for size in range(5, 15):
                x = torch.randn(1, 3, 2, size + n, 7, dtype=torch.float64)
                try:
                    torch.testing.assert_close(module(x), plain(x), rtol=1e-10, atol=1e-10)
                except Exception as error:
                    failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not failed


class _EndsInAView(nn.Module):
    """Its last calls take channels apart, which copies nothing."""

    def __init__(self, end):
        super().__init__()
        self.one, self.two, self.end = code.PaddingConv(3, 4), code.PaddingConv(4, 4), end

    def forward(self, x):
        return self.end(self.two(self.one(x)))


ENDS = {
    "shuffled": lambda y: y.unflatten(1, (2, 2)).permute(0, 2, 1, 3, 4, 5).flatten(1, 2),
    "turned": lambda y: y.unflatten(1, (2, 2)).flatten(1, 2).permute(0, 1, 2, 4, 3),
    "of one": lambda y: y.unflatten(1, (4, 1)).permute(0, 1, 3, 2, 4, 5).flatten(2, 3),
    "halved": lambda y: y.unflatten(1, (2, 2)).flatten(1, 2)[:, ::2],
    "unchanged": lambda y: y.unflatten(1, (2, 2)).flip(0).flatten(1, 2),
}


@pytest.mark.skipif(native.why_no_cpu() is not None, reason="other backends have memory of their own")
@pytest.mark.parametrize("end", ENDS)
def test_what_is_returned_is_nobody_elses_memory(end):
    """The next call does not write over it."""
    model = _EndsInAView(ENDS[end]).eval().requires_grad_(False)
    handle = swap(model, backend="cpu")
    x = torch.rand(1, 3, 4, 6, 6)
    first = model(x)
    kept = first.clone()
    with torch.no_grad():
        handle._link.active = False
        torch.testing.assert_close(model(x), first)
        handle._link.active = True
    model(torch.rand(1, 3, 4, 6, 6))
    assert any(known.schedule is not None for known in handle._link.coders.known.values())
    assert torch.equal(first, kept)
    handle.release_memory()
    assert torch.equal(first, kept)
