"""Dry runs: what is counted, and what a run leaves behind."""

import pytest
import torch
import torch.nn.functional as F

from causalvae_kernels import causal_conv3d, packed_size, release_packed_weights
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.core import dry_run
from causalvae_kernels.core.dry_run import DryRun, is_plain_tensor
from tests.support.cover import pairs


def test_what_lives_at_the_same_time_counts_once():
    def work():
        first = torch.empty(1000)
        view = first[10:].view(-1, 9)
        del first
        second = torch.empty(500)
        del view
        third = second + 1
        return third

    with DryRun() as run:
        assert run.peak_of(work) == 4 * 1500
        kept = torch.empty(10**12)  # nothing is allocated
        assert run.peak_of(work) == 4 * 1500
        del kept
    assert peak_allocated(work) == 4 * 1500


def test_what_is_made_uncounted_is_in_no_peak():
    with DryRun() as run:
        kept = []
        assert run.peak_of(lambda: kept.append(run.uncounted(lambda: torch.empty(900)))) == 0
        assert run.peak_of(lambda: torch.empty(10)) == 40
        assert run.peak_of(kept.clear) == 0
        assert run.peak_of(lambda: torch.empty(10)) == 40


def test_packed_weights_are_in_no_peak():
    release_packed_weights()
    weight, x = torch.randn(16, 16, 3, 3, 3), torch.randn(1, 16, 1, 8, 8)
    causal_conv3d(x, weight, backend="cpu")
    measured = peak_allocated(lambda: causal_conv3d(x, weight, backend="cpu"))
    assert measured < packed_size()
    with DryRun() as run:
        x, weight = torch.empty_like(x), torch.empty_like(weight)
        assert run.peak_of(lambda: causal_conv3d(x, weight, backend="cpu")) == measured
    release_packed_weights()


def test_nothing_is_left_behind():
    before = packed_size()
    with DryRun() as run:
        x, weight = torch.empty(1, 16, 4, 16, 16), torch.empty(16, 16, 3, 3, 3)
        assert is_plain_tensor(x)
        run.peak_of(lambda: causal_conv3d(x, weight, backend="cpu"))
        assert packed_size() > 0
    assert packed_size() == before
    assert dry_run.current() is None
    assert not is_plain_tensor(x)


def test_addresses_tell_storages_apart():
    with DryRun() as run:
        a, b = torch.empty(8), torch.empty(8)
        assert run.address(a) != run.address(b)
        assert run.address(a[2:]) == run.address(a) + 8


def test_a_copy_has_no_data_and_the_model_keeps_its_own():
    model = torch.nn.Conv3d(3, 4, 1)
    weight = model.weight.detach().clone()
    with DryRun() as run:
        copied = run.copy_of(model)
        assert is_plain_tensor(copied.weight)
        torch.nn.init.zeros_(copied.weight)
    assert torch.equal(model.weight, weight)


CONVOLUTIONS = [  # channels, kernel, pixels, padding
    ((5, 7), (3, 3, 3), (4, 6, 10), (0, 1, 1)),
    ((16, 32), (3, 3, 3), (6, 24, 36), (0, 1, 1)),
    ((32, 16), (1, 1, 1), (5, 20, 20), (0, 0, 0)),
    ((16, 3), (3, 3, 3), (9, 40, 24), (0, 1, 1)),
]


@pairs(
    case=CONVOLUTIONS,
    memory_format=[torch.contiguous_format, torch.channels_last_3d],
    dtype=[torch.float32, torch.bfloat16],
)
def test_what_the_framework_allocates_inside_a_convolution(case, memory_format, dtype):
    channels, kernel, size, padding = case

    def work(x, weight):
        return F.conv3d(x, weight, None, 1, padding)

    shapes = (2, channels[0], *size), (channels[1], channels[0], *kernel)
    real = [torch.randn(shape).to(dtype) for shape in shapes]
    real[0] = real[0].contiguous(memory_format=memory_format)
    measured = peak_allocated(lambda: work(*real))
    with DryRun() as run:
        x = torch.empty(shapes[0], dtype=dtype).contiguous(memory_format=memory_format)
        weight = torch.empty(shapes[1], dtype=dtype)
        result = work(x, weight)
        predicted = run.peak_of(lambda: work(x, weight))
    expected = work(*real)
    assert (result.shape, result.stride(), result.dtype) == (expected.shape, expected.stride(), dtype)
    assert measured / 1.1 <= predicted <= measured * 1.1


@pytest.mark.parametrize("length", [301, 7])
def test_what_the_framework_allocates_inside_a_convolution_over_one_dimension(length):
    shapes = (2, 24, length), (16, 24, 3)
    real = [torch.randn(shape) for shape in shapes]
    measured = peak_allocated(lambda: F.conv1d(*real, padding=1))
    with DryRun() as run:
        x, weight = (torch.empty(shape) for shape in shapes)
        predicted = run.peak_of(lambda: F.conv1d(x, weight, padding=1))
    assert measured / 1.1 <= predicted <= measured * 1.1


def test_packed_weights_are_those_of_the_run():
    release_packed_weights()
    weight, x = torch.randn(16, 16, 3, 3, 3), torch.randn(1, 16, 4, 16, 16)
    causal_conv3d(x, weight, backend="cpu")
    with DryRun():
        assert packed_size() == 0
    assert packed_size() > 0
    release_packed_weights()
