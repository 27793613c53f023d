"""What a record becomes: norms with what is scaled behind them, room around frames, shuffles in one write."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from causalvae_kernels import swap
from causalvae_kernels.coder import CallStep, OpStep
from causalvae_kernels.core import native
from tests.support import original_code as code

pytestmark = pytest.mark.one_backend
BACKENDS = ["aten"] + (["cpu"] if native.why_no_cpu() is None else [])


class PixelNorm(nn.Module):
    def forward(self, x):
        return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-6)


class Bothways(nn.Module):
    """A convolution that looks as far ahead as back."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=(0, 1, 1))

    def forward(self, x):
        return self.conv(torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2))


class Coder(nn.Module):
    def __init__(self, middle, channels=8):
        super().__init__()
        self.one, self.two = code.PaddingConv(3, channels), code.PaddingConv(channels, 3)
        self.c, self.d = code.PaddingConv(channels, channels), Bothways(channels)
        self.norm, self.group = PixelNorm(), nn.GroupNorm(2, channels)
        self.linear = nn.Linear(channels, channels)
        self.scale = nn.Parameter(torch.rand(channels))
        self.middle = middle

    def forward(self, x):
        return self.two(self.middle(self, self.one(x)))


def _seeded(model, x):
    torch.manual_seed(1)
    return model(x)


def _scale(m, x):
    return (x.mean() + m.scale)[None, :, None, None, None]


def _images(m, x):
    y = m.group(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def _shuffle(x):
    b, c, t, h, w = x.shape
    return x.view(b, c // 4, 2, 2, t, h, w).permute(0, 1, 4, 5, 2, 6, 3).reshape(b, c // 4, t, 2 * h, 2 * w)


def _reused(m, x):
    y = m.norm(x)
    return F.silu(y * _scale(m, x) + _scale(m, x)) + y


def _of_itself(m, x):
    y = m.norm(x)
    return F.silu(y * y.mean((0, 2, 3, 4), keepdim=True) + _scale(m, x))


def _twice(m, x):
    y = m.norm(m.d(F.silu(m.norm(x) * (1 + _scale(m, x)) + _scale(m, x))))
    return x + m.d(F.silu(y))


def _read_twice(m, x):
    y = F.silu(m.norm(x))
    return m.d(y) + y


def _split_twice(m, x):
    y = x.unflatten(1, (2, -1))
    z = y.flatten(1, 2)
    return z + y.sum(1).repeat(1, 2, 1, 1, 1)


def _shifted(m, x):
    y = m.c(x)
    return m.c(torch.cat([y[:, :, :1], y[:, :, 1:] + y[:, :, :-1]], 2)) + y


def _over_itself(m, x):
    y = m.c(x)
    return y + torch.cat([y[:, :, 1:], y[:, :, :1]], 2)


def _weave(x):
    """Both halves of the channels in turns, as frames."""
    b, c, t, h, w = x.shape
    x = x.reshape(b, 2, c // 2, t, h, w)
    return torch.stack((x[:, 0], x[:, 1]), 3).reshape(b, c // 2, 2 * t, h, w)


def _mean(x):
    return x.mean((0, 2, 3, 4), keepdim=True)


def _scale_in_scale(m, x):
    v = m.c(x)
    h, u = m.norm(x), F.silu(v)
    w = v + (m.norm(m.c(x)) * (1 + _scale(m, x)) + _scale(m, x))
    return h * _mean(w) + _scale(m, x) + u


def _woven_before_its_turn(m, x):
    h, y = m.norm(x), m.c(x)
    z = F.silu(y)
    return h * _mean(_weave(y)).repeat(1, 2, 1, 1, 1) + _scale(m, x) + z


def _woven_while_read(m, x):
    y = m.c(x)
    a, woven = m.c(y), _weave(y)
    return (a + x) * _mean(woven).repeat(1, 2, 1, 1, 1)


def _two_draws(m, x):
    h = m.norm(x)
    a, b = (torch.randn(1, x.shape[1], 1, 1, 1, dtype=x.dtype, device=x.device) for _ in range(2))
    return h * b + _scale(m, x) + a * x


def _bits(m, x):
    return m.c(x).contiguous().view(torch.int16).clone().view(x.dtype)


def _one_times(m, x):
    y = m.c(x)
    z = y / 1
    return F.silu(z) + y * 1.0


CODERS = {
    "norm and SiLU": lambda m, x: F.silu(m.norm(x)),
    "norm over frames": lambda m, x: m.norm(x.transpose(1, 2)).transpose(1, 2),
    "norm over rows": lambda m, x: m.norm(x.movedim(3, 1)).movedim(1, 3),
    "scaled": lambda m, x: F.silu(m.norm(x) * (1 + _scale(m, x)) + _scale(m, x)),
    "scaled, another order": lambda m, x: F.silu(_scale(m, x) + _scale(m, x) * m.norm(x)),
    "scaled, and read": _reused,
    "scaled by itself": _of_itself,
    "scaled by what a convolution makes": lambda m, x: (
        m.norm(x) * m.c(x).mean((0, 2, 3, 4), True) + _scale(m, x)
    ),
    "both ways": lambda m, x: m.d(x),
    "norms, both ways": _twice,
    "both ways, read twice": _read_twice,
    "images": lambda m, x: F.silu(_images(m, x)),
    "images, read twice": lambda m, x: F.silu(_images(m, x)) + x,
    "matrix": lambda m, x: m.linear(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3),
    "matrix, another order": lambda m, x: m.linear(x.permute(0, 4, 3, 2, 1)).permute(0, 4, 3, 2, 1),
    "matrix over columns": lambda m, x: F.linear(x, torch.ones(x.shape[4], x.shape[4], dtype=x.dtype)),
    "shuffled": lambda m, x: _shuffle(m.c(x)).repeat(1, 4, 1, 1, 1),
    "shuffled, a frame less": lambda m, x: _shuffle(m.c(x))[:, :, :1].repeat(1, 4, 1, 1, 1),
    "split, and read in both forms": _split_twice,
    "rows and columns": lambda m, x: m.c(x.repeat_interleave(2, 3).repeat_interleave(2, 4)),
    "rows more than columns": lambda m, x: m.c(x.repeat_interleave(3, 3).repeat_interleave(2, dim=4)),
    "rows alone": lambda m, x: m.c(x.repeat_interleave(2, dim=3)),
    "columns, then rows": lambda m, x: m.c(x.repeat_interleave(2, dim=4).repeat_interleave(2, dim=3)),
    "shifted sums": _shifted,
    "over itself": _over_itself,
    "times one": _one_times,
    "scaled by what is scaled": _scale_in_scale,
    "scaled by what is woven": _woven_before_its_turn,
    "woven, and read by what waits": _woven_while_read,
    "scaled by noise": _two_draws,
    "bits": _bits,
}
LAST = {
    "SiLU": lambda m, x: F.silu(x),
    "SiLU of a convolution": lambda m, x: F.silu(m.c(x)),
    "a sum": lambda m, x: F.silu(m.c(x)) + m.c(x) * 2,
    "images": _images,
    "SiLU of images": lambda m, x: F.silu(_images(m, x)),
    "woven": lambda m, x: _weave(m.c(x)),
    "channels repeated": lambda m, x: m.c(x).repeat(1, 3, 1, 1, 1),
    "shuffled": lambda m, x: _shuffle(m.c(x)),
    "a matrix product": lambda m, x: m.linear(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3),
    "norm, and what is made of it": lambda m, x: (lambda y: (y, m.d(y)))(m.norm(x)),
    "what is made of a norm, and that": lambda m, x: (lambda y: (m.d(y), y))(m.norm(x)),
    "norm and SiLU": lambda m, x: (lambda y: (y, F.silu(y)))(m.norm(x)),
    "a view, and a sum": lambda m, x: (lambda y: (y.flatten(0, 1)[None], y + x))(m.c(x)),
}
"""What a coder returns that is not a convolution's."""


class Raw(Coder):
    def forward(self, x):
        return self.middle(self, self.one(x))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("memory", [None, "low"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAST)
def test_what_is_returned(name, backend, memory, batch):
    torch.manual_seed(0)
    model = Raw(LAST[name]).eval().requires_grad_(False)
    clips = [torch.randn(batch, 3, 5, 6, 4) for _ in range(2)]
    expected = [model(x) for x in clips]
    handle = swap(model, backend=backend, **({"memory": memory} if memory else {}))
    made = [model(x) for x in clips]
    torch.testing.assert_close(made, expected, rtol=2e-3, atol=2e-4)
    (known,) = handle._link.coders.known.values()
    assert known.schedule is not None
    first, wanted = (m[0] if isinstance(m[0], torch.Tensor) else m[0][0] for m in (made, expected))
    dense = wanted.is_contiguous() or wanted.is_contiguous(memory_format=torch.channels_last_3d)
    assert first.stride() == (wanted.stride() if dense else first.contiguous().stride())
    kept = [t for m in made for t in ([m] if isinstance(m, torch.Tensor) else m)]
    assert all(t.untyped_storage().nbytes() == t.numel() * t.itemsize for t in kept)


class Causal(nn.Conv3d):
    def forward(self, x):
        return super().forward(torch.cat([x[:, :, :1]] * 2 + [x], 2))


class Narrowing(nn.Module):
    """Convolutions of fewer and fewer channels."""

    def __init__(self, *channels, norms):
        super().__init__()
        pairs = zip(channels, channels[1:], strict=False)
        self.convs = nn.ModuleList([Causal(a, b, 3, padding=(0, 1, 1)) for a, b in pairs])
        self.norm, self.norms = PixelNorm(), norms

    def forward(self, x):
        for conv in self.convs[:-1]:
            x = conv(x)
            x = F.silu(self.norm(x)) if self.norms else x
        return self.convs[-1](x)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="other backends write into fresh memory")
@pytest.mark.parametrize("frames", [3, 4, 5, 9])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("channels", [(3, 32, 16, 16, 3), (3, 32, 32, 32, 16, 8, 8, 3), (3, 64, 32, 16, 3)])
def test_low_memory_of_fewer_and_fewer_channels(channels, norms, frames):
    """A convolution lies inside of what it reads, and another one over that."""
    torch.manual_seed(0)
    model = Narrowing(*channels, norms=norms).eval().requires_grad_(False)
    clips = [torch.randn(1, 3, frames, 16, 12) for _ in range(2)]
    expected = [model(x) for x in clips]
    swap(model, backend="cpu", memory="low")
    for x, wanted in zip(clips * 2, expected * 2, strict=True):
        torch.testing.assert_close(model(x), wanted, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 5, 8])  # 8: as many as there are channels
@pytest.mark.parametrize("name", CODERS)
def test_the_numbers_are_those_of_the_code(name, frames, batch):
    torch.manual_seed(0)
    model = Coder(CODERS[name]).double().eval().requires_grad_(False)
    x = torch.randn(batch, 3, frames, 6, 4, dtype=torch.float64)
    expected = _seeded(model, x)
    handle = swap(model, backend="aten")
    for _ in range(2):
        torch.testing.assert_close(_seeded(model, x), expected, rtol=1e-9, atol=1e-9)
    assert handle.report


@pytest.mark.skipif("cpu" not in BACKENDS, reason="other backends write into fresh memory")
@pytest.mark.parametrize("memory", [None, "low"])
@pytest.mark.parametrize("name", CODERS)
def test_in_one_arena(name, memory):
    """Nothing is overwritten that is still read: each run is that of other frames."""
    torch.manual_seed(0)
    model = Coder(CODERS[name], 32).eval().requires_grad_(False)
    clips = [torch.randn(batch, 3, 5, 16, 12) for batch in (1, 2, 1)]
    expected = [_seeded(model, x) for x in clips]
    swap(model, backend="cpu", **({"memory": memory} if memory else {}))
    for x, wanted in zip(clips * 2, expected * 2, strict=True):
        torch.testing.assert_close(_seeded(model, x), wanted, rtol=2e-3, atol=2e-4)


def _steps(name, frames=4, batch=1):
    model = Coder(CODERS[name]).eval().requires_grad_(False)
    handle = swap(model, backend="aten")
    model(torch.randn(batch, 3, frames, 6, 4))
    (known,) = handle._link.coders.known.values()
    steps = [planned.step for planned in known.schedule.planned]
    return [s.op.name for s in steps if isinstance(s, OpStep)], [s for s in steps if isinstance(s, CallStep)]


def test_what_steps_they_are():
    conv, norm = "causal_conv3d", "rms_norm"
    assert _steps("norm and SiLU") == ([conv, norm, conv], [])
    assert _steps("images") == ([conv, "group_norm", conv], [])
    assert _steps("images", batch=2) == ([conv, "group_norm", "group_norm", conv], [])
    assert _steps("both ways") == ([conv, conv, conv], [])
    ops, calls = _steps("scaled")
    assert ops == [conv, norm, conv] and all(
        len(s.result.shape) < 5 or s.result.shape[2:] == (1, 1, 1) for s in calls
    )
    ops, calls = _steps("shuffled")
    assert (
        ops == [conv, conv, conv] and sum(s.into for s in calls) == 2
    )  # the shuffle, and its channels repeated
