"""Timing: order of the calls, and the percentiles."""

import contextlib
import time

import numpy as np
import pytest
import torch

from causalvae_kernels.bench.timing import Timing, percentile, time_once, time_providers


def test_rounds_alternate_and_every_second_one_runs_backwards():
    calls = []
    providers = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = time_providers(providers, repeats=3, warmup=2)
    assert "".join(calls) == "abccbaabccbaabc"
    assert list(timings) == ["a", "b", "c"]
    assert [len(timing.samples_ms) for timing in timings.values()] == [3, 3, 3]


def test_progress_hears_of_every_call():
    heard = []
    time_providers({"a": lambda: None, "b": lambda: None}, repeats=2, warmup=1, progress=heard.append)
    assert sorted(heard) == ["a"] * 3 + ["b"] * 3


def test_warmup_is_not_counted():
    pauses = iter([0.05, 0.0, 0.0])
    timings = time_providers({"a": lambda: time.sleep(next(pauses))}, repeats=2, warmup=1)
    assert max(timings["a"].samples_ms) < 50


def test_time_once_is_in_milliseconds():
    assert 20 <= time_once(lambda: time.sleep(0.02)) < 500


def test_on_a_gpu_everything_is_queued_before_any_of_it_runs(monkeypatch):
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("event")

        def synchronize(self):
            done.append("wait")

        def elapsed_time(self, end):
            return 3.0

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("sleep"))
    assert time_once(lambda: done.append("call"), "cuda", lambda: done.append("flush")) == 3.0
    assert done == ["wait", "sleep", "flush", "event", "call", "event", "wait"]


@pytest.mark.parametrize("percent", [0, 20, 50, 80, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_percentile_agrees_with_numpy(percent, count):
    samples = list(np.random.default_rng(count).random(count))
    assert percentile(samples, percent) == pytest.approx(np.percentile(samples, percent), rel=1e-12)


def test_timing_as_dict():
    assert Timing("a", (3.0, 1.0, 2.0)).as_dict() == {
        "p20_ms": pytest.approx(1.4),
        "p50_ms": 2.0,
        "p80_ms": pytest.approx(2.6),
        "samples": 3,
    }


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="repeats=0, expected at least 1"):
        time_providers({}, repeats=0)
    with pytest.raises(ValueError, match="warmup=-1, expected at least 0"):
        time_providers({}, warmup=-1)
    with pytest.raises(ValueError, match="no sample"):
        percentile([], 50)
