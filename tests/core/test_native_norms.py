"""The native norms, called directly: what they refuse, SiLU's last bits, threads, sizes beyond 32 bits."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from causalvae_kernels import group_norm, rms_norm, spatial_norm
from causalvae_kernels.core import native

if native._load()[0] is None:
    pytest.skip(f"no native module: {native._load()[1]}", allow_module_level=True)

C = native._load()[0]
ISAS = C.supported_isas()


def tensor(*sizes, address=8):
    """A tensor that is looked at but never read."""
    return address, sizes, (1,) * 5


def good_group_norm():
    x, latent = tensor(1, 4, 5, 4, 6), tensor(1, 4, 3, 2, 6)
    return [x, x, latent, latent, None, None, 2, 1e-5, True, True, (2, 2, 1), "float32", "portable", 1]


@pytest.mark.parametrize(
    ("index", "value", "sentence"),
    [
        (0, tensor(1, 4, 5, 4, 7), r"out has sizes .* expected \(1, 4, 5, 4, 6\)"),
        (1, tensor(1, 4, 5, 4, 6, address=0), "x has a null address"),
        (2, tensor(1, 4, 3, 2, 5), r"scale has sizes .* divided by the repeats \(2, 2, 1\)"),
        (2, None, "one of scale and shift"),
        (3, tensor(1, 5, 3, 2, 6), "shift has sizes"),
        (3, tensor(1, 4, 3, 2, 6, address=0), "shift has a null address"),
        (4, 0, "weight has a null address"),
        (5, 0, "bias has a null address"),
        (6, 3, "expected a divisor of 4 channels"),
        (6, 0, "expected a divisor of 4 channels"),
        (7, -1.0, "eps is"),
        (7, float("nan"), "eps is"),
        (9, False, "scale has sizes"),
        (10, (2, 0, 1), "repeats are"),
        (11, "float64", "got 'float64', expected float32, bfloat16 or float16"),
        (12, "sse9", "got 'sse9', expected one that this build and processor have"),
        (13, 0, "num_threads is 0"),
    ],
)
def test_group_norm_refuses(index, value, sentence):
    arguments = good_group_norm()
    arguments[index] = value
    with pytest.raises(ValueError, match=sentence):
        C.group_norm(*arguments)


@pytest.mark.parametrize(
    ("index", "value", "sentence"),
    [
        (0, tensor(1, 4, 5, 4, 7), "out has sizes"),
        (1, tensor(1, 4, 5, 4, 6, address=0), "x has a null address"),
        (2, 0, "weight has a null address"),
        (3, 0, "bias has a null address"),
        (4, -1.0, "eps is"),
        (4, float("nan"), "eps is"),
        (6, "int8", "got 'int8'"),
        (7, "sse9", "got 'sse9'"),
        (8, 2000, "num_threads is 2000"),
    ],
)
def test_rms_norm_refuses(index, value, sentence):
    x = tensor(1, 4, 5, 4, 6)
    arguments = [x, x, 8, None, 0.0, True, "float32", "portable", 1]
    arguments[index] = value
    with pytest.raises(ValueError, match=sentence):
        C.rms_norm(*arguments)


def silu_of(y, isa):
    """SiLU alone: the RMS norm of ones over 4^k channels is exactly one, so that the weights go through."""
    ones = torch.ones(1, y.numel(), 1, 1, 1)
    out = torch.empty_like(ones)
    C.rms_norm(native.describe(out), native.describe(ones), y.data_ptr(), None, 0.0, True, "float32", isa, 1)
    return out.flatten()


@pytest.mark.parametrize("isa", ISAS)
def test_silu_to_two_units_in_the_last_place(isa, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(4**9, generator=generator) * 174 - 87
    y[::2] = torch.randn(4**9 // 2, generator=generator) * 4
    y[::8] *= 1e-4
    exact = y.double() * torch.sigmoid(y.double())
    _, exponent = torch.frexp(exact.float())
    ulp = torch.ldexp(torch.ones_like(exact), exponent - 24)
    assert ((silu_of(y, isa) - exact).abs() / ulp).max() < 2.5


@pytest.mark.parametrize("isa", ISAS)
def test_silu_at_the_ends(isa):
    infinity, nan = float("inf"), float("nan")
    special = [
        0.0,
        88.0,
        -88.0,
        89.0,
        -89.0,
        104.0,
        -104.0,
        1e4,
        -1e4,
        1e30,
        -1e30,
        1e-30,
        -1e-30,
        infinity,
        nan,
    ]
    y = torch.tensor(special + [0.0])
    assert torch.allclose(silu_of(y, isa), F.silu(y), rtol=1e-5, atol=1e-36, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_two_python_threads_at_once(channels_last, seed):
    torch.manual_seed(seed)
    calls = [(torch.randn(1, 32, 3, 30, 40) * (i + 1) + i, torch.randn(32)) for i in range(4)]
    if channels_last:
        calls = [(x.contiguous(memory_format=torch.channels_last_3d), w) for x, w in calls]

    def work(call):
        x, weight = call
        return group_norm(x, 8, weight, backend="cpu"), rms_norm(x, weight, backend="cpu")

    alone = [work(call) for call in calls]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for got, expected in zip(pool.map(work, calls), alone, strict=True):
                assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_strides_beyond_32_bits(isa, channels_last, seed):
    far = 2**31 + 64
    memory = torch.empty(far + 2**10, dtype=torch.bfloat16)  # only what is written below becomes real
    strides = (1, 1, far, 120, 24) if channels_last else (1, 20, far, 5, 1)
    x = memory.as_strided((1, 20, 2, 4, 5), strides)
    x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
    near, ones = x.clone(memory_format=torch.contiguous_format), torch.ones(20)
    both = (native.describe(x),) * 2
    numbers = (4, 1e-5, True, False, (1, 1, 1))
    C.group_norm(*both, None, None, None, None, *numbers, "bfloat16", isa, 1)
    expected = group_norm(near.double(), 4, backend="reference")
    assert torch.allclose(x.double(), expected, rtol=0.02, atol=0.02)
    x.copy_(near)
    C.rms_norm(*both, ones.data_ptr(), None, 0.0, True, "bfloat16", isa, 1)
    expected = rms_norm(near.double(), ones.double(), backend="reference")
    assert torch.allclose(x.double(), expected, rtol=0.02, atol=0.02)


# The native code writes runs of at most 2,048 columns: some rows and a rest, a row too long for them, rows
# that do not lie one behind the other.
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("size", "latent", "cut"),
    [
        ((3, 60, 50), (2, 30, 25), 0),
        ((2, 6, 1200), (1, 3, 600), 0),
        ((2, 12, 2100), (1, 3, 525), 0),
        ((3, 60, 50), (2, 15, 25), 5),
        ((1, 18, 18), (1, 18, 18), 0),
    ],
)
def test_a_modulated_plane_is_the_same_in_runs_of_rows(monkeypatch, isa, size, latent, cut):
    monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", isa)
    frames, height, width = size
    x = torch.randn(2, 4, frames, height, width + cut)[..., :width]
    scale, shift = torch.randn(2, 2, 4, *latent)
    y = spatial_norm(x, scale, shift, 2, backend="cpu")
    oracle = spatial_norm(x.double(), scale.double(), shift.double(), 2, backend="reference")
    assert torch.linalg.norm(y - oracle) <= 1e-6 * torch.linalg.norm(oracle)
