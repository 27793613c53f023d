"""The machine's limits: where they come from, and their units."""

import types

import pytest
import torch

from causalvae_kernels.bench import roofline
from causalvae_kernels.bench.threads import num_threads
from causalvae_kernels.core import native


def test_the_best_of_several_runs_counts(monkeypatch):
    rates = iter([3.0, 5.0, 4.0, 1.0, 2.0])
    asked = []

    def fma_rate(isa, threads, milliseconds):
        asked.append((isa, threads, milliseconds))
        return next(rates)

    monkeypatch.setattr(native, "why_no_cpu", lambda: None)
    monkeypatch.setattr(native, "cpu_module", lambda: types.SimpleNamespace(fma_rate=fma_rate))
    monkeypatch.setattr(native, "cpu_isa", lambda: "avx2")
    assert roofline.fma_limit(3, milliseconds=7) == 5.0
    assert asked == [("avx2", 3, 7)] * 5


def test_no_rate_without_the_native_module(monkeypatch):
    monkeypatch.setattr(native, "why_no_cpu", lambda: "not built")
    assert roofline.fma_limit(1) is None


@pytest.mark.skipif(native.why_no_cpu() is not None, reason="needs the native CPU module")
def test_the_rate_is_that_of_a_processor():
    # Between one scalar operation in ten cycles and 256 vector lanes at 10 GHz.
    assert 0.1 < roofline.fma_limit(1, milliseconds=5) < 5000


def test_a_copy_counts_reads_and_writes(monkeypatch):
    monkeypatch.setattr(roofline, "time_once", lambda copy: 2.0)
    assert roofline.copy_bandwidth(1, num_bytes=4_000_000) == pytest.approx(4.0)  # 8 MB in 2 ms


def test_a_copy_is_measured():
    before = torch.get_num_threads()
    assert 0.01 < roofline.copy_bandwidth(1, num_bytes=2**20) < 100_000
    assert torch.get_num_threads() == before


def test_threads_are_given_back_after_an_exception():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), num_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    with num_threads(None):
        assert torch.get_num_threads() == before
