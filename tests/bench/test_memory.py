"""Peak memory against allocations of known sizes."""

import os

import pytest
import torch

from causalvae_kernels.bench.memory import peak_allocated

MB = 1_000_000


def allocate(megabytes):
    return torch.empty(megabytes * MB, dtype=torch.uint8)


def test_peak_is_of_what_lives_at_the_same_time():
    def work():
        first = allocate(1)
        second = allocate(2)
        del first
        third = allocate(4)
        del second, third
        allocate(5)

    assert peak_allocated(work) == 6 * MB


def test_what_lives_before_does_not_count():
    before = allocate(50)
    assert peak_allocated(lambda: allocate(3)) == 3 * MB
    assert before.numel() == 50 * MB


def test_allocations_inside_operators_count():
    x = torch.randn(1, 8, 4, 16, 16)
    weight = torch.randn(8, 8, 1, 1, 1)
    output_bytes = x.numel() * 4
    # add: its result; conv: result and whatever scratch the framework takes from its own allocator
    assert peak_allocated(lambda: x + x) == output_bytes
    assert peak_allocated(lambda: torch.nn.functional.conv3d(x, weight)) >= output_bytes


def test_autograd_threads_count():
    x = torch.randn(1000, requires_grad=True)
    assert peak_allocated(lambda: (x * x).sum().backward()) >= 2 * 4000


def test_nothing_allocated_is_zero():
    assert peak_allocated(lambda: None) == 0


def test_exception_passes_and_environment_is_left_alone(monkeypatch):
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    with pytest.raises(KeyError):
        peak_allocated(lambda: {}["missing"])
    assert "KINETO_LOG_LEVEL" not in os.environ


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_peak_on_cuda():
    def work():
        first = torch.empty(4 * 2**20, dtype=torch.uint8, device="cuda")
        second = torch.empty(8 * 2**20, dtype=torch.uint8, device="cuda")
        del first, second

    assert peak_allocated(work, "cuda") == 12 * 2**20
