"""Calls that were bound once: what they cost, and what they must notice between two of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from causalvae_kernels import (
    BackendUnavailable,
    FrameBuffer,
    InvalidInput,
    causal_conv3d,
    release_packed_weights,
    use_backend,
    use_packed_budget,
    use_precision,
)
from causalvae_kernels.bench.timing import python_calls
from causalvae_kernels.core import native
from causalvae_kernels.core.op import op_named
from causalvae_kernels.core.triton_runtime import interpreting

pytestmark = [
    pytest.mark.skipif(native.why_no_cpu() is not None, reason="there are no native kernels"),
    pytest.mark.skipif(interpreting(), reason="calls of the backend cpu are what is tested"),
]
OP = op_named("causal_conv3d")
MOST_CALLS = (
    40  # Python calls of a small convolution with a state; it took 370, torch.cat and F.conv3d take 2
)


def small_call() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, state = (torch.randn(1, 8, 2, 4, 4, generator=generator) for _ in range(2))
    weight, bias = torch.randn(8, 8, 3, 3, 3, generator=generator), torch.randn(8, generator=generator)
    return {"x": x, "weight": weight, "bias": bias, "initial_state": state}


def agrees(call: dict[str, torch.Tensor], **options: object) -> None:
    """Require what the reference gives."""
    got = causal_conv3d(**call, **options)
    assert torch.allclose(got, causal_conv3d(**call, backend="reference"), atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("backend", [None, "cpu"])
def test_a_small_convolution_takes_few_calls(backend):
    call = small_call()
    x, weight, bias, state = call.values()

    def work():
        causal_conv3d(x, weight, bias, initial_state=state, return_final_state=True, backend=backend)

    work(), work()
    assert python_calls(work) <= MOST_CALLS


def test_weights_that_change_between_two_calls():
    call = small_call()
    for change in (
        lambda w: w.mul_(2),
        lambda w: w.data.copy_(torch.randn(w.shape)),
        lambda w: w.numpy().fill(0.5),
    ):
        agrees(call, backend="cpu")
        change(call["weight"])
        agrees(call, backend="cpu")
    call["weight"] = call["weight"].clone()  # another address
    agrees(call, backend="cpu")
    release_packed_weights()
    agrees(call, backend="cpu")


def test_no_room_for_packed_weights_is_noticed_and_so_is_new_room():
    x, weight = torch.randn(1, 32, 3, 16, 16), torch.randn(32, 32, 3, 3, 3)
    expected = causal_conv3d(x, weight, backend="reference")
    for budget in (None, 0, 2**30):
        release_packed_weights()
        for _ in range(2):
            if budget is None:
                got = causal_conv3d(x, weight)
            else:
                with use_packed_budget(budget):
                    got = causal_conv3d(x, weight)
                    forced = causal_conv3d(x, weight, backend="cpu")
                assert torch.allclose(forced, expected, atol=1e-3)
            assert torch.allclose(got, expected, atol=1e-3)


def test_what_was_asked_for_decides_every_call(monkeypatch):
    call = small_call()
    exact = causal_conv3d(**call, backend="reference")
    assert not torch.equal(causal_conv3d(**call, backend="cpu"), exact)
    with use_backend("reference"):
        assert torch.equal(causal_conv3d(**call), exact)
    with use_backend("cpu"):
        assert not torch.equal(causal_conv3d(**call), exact)
        with use_precision("exact"), pytest.raises(BackendUnavailable, match="'exact' asks for the bits"):
            causal_conv3d(**call)
    monkeypatch.setenv("CAUSALVAE_KERNELS_BACKEND", "cpu")
    assert not torch.equal(causal_conv3d(**call), exact)
    monkeypatch.setenv("CAUSALVAE_KERNELS_PRECISION", "exact")
    with pytest.raises(BackendUnavailable, match="'exact' asks for the bits"):
        causal_conv3d(**call)
    monkeypatch.setenv("CAUSALVAE_KERNELS_PRECISION", "high")
    monkeypatch.setenv("CAUSALVAE_KERNELS_BACKEND", "tpu")
    with pytest.raises(InvalidInput, match="got 'tpu', expected one of"):
        causal_conv3d(**call)
    monkeypatch.setenv("CAUSALVAE_KERNELS_BACKEND", "cpu")
    monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", "portable")
    assert native.cpu_isa() == "portable"
    assert torch.allclose(causal_conv3d(**call), exact, atol=1e-4)


def test_who_looks_on_sees_the_operator_though_the_call_is_bound():
    call = small_call()
    expected = causal_conv3d(**call)
    x = call["x"].clone().requires_grad_()
    causal_conv3d(**call | {"x": x}).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert not causal_conv3d(**call | {"x": x}).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert causal_conv3d(**call).dtype == torch.bfloat16
    mapped = torch.func.vmap(lambda t: causal_conv3d(t.unsqueeze(0), call["weight"]).squeeze(0))
    assert mapped(call["x"]).shape == expected.shape
    traced = torch.jit.trace(
        lambda t: causal_conv3d(t, call["weight"], call["bias"]), call["x"], check_trace=False
    )
    assert "causalvae_kernels::causal_conv3d" in str(traced.graph)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(1, 8, 2, 4, 4).to_sparse()}, "expected a dense one"),
        ({"x": torch.zeros(1, 8, 2, 4, 4, dtype=torch.int32)}, "expected one dtype|expected float32"),
        ({"x": torch.zeros(1, 7, 2, 4, 4)}, "channels"),
        ({"x": [1.0]}, "is a list"),
        ({"initial_state": torch.zeros(1, 8, 3, 4, 4)}, "initial_state has shape"),
        ({"stride": 3}, "expected strides of 1 or 2"),
        ({"stride": 1.0}, "stride is 1.0, expected an int or 3 ints"),
        ({"dilation": True}, "dilation is True, expected an int or 3 ints"),
        ({"stride": [1, 1]}, "expected an int or 3 ints"),
        ({"dilation": {}}, "expected an int or 3 ints"),
        ({"temporal_mode": "mirror"}, "temporal_mode"),
        ({"precision": "double"}, "expected one of"),
        ({"backend": "tpu"}, "expected one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_after_a_good_call(change, sentence):
    call = small_call()
    causal_conv3d(**call)
    with pytest.raises(InvalidInput, match=sentence):
        causal_conv3d(**call | change)


def test_a_view_that_is_read_as_its_negative():
    call = small_call()
    causal_conv3d(**call, backend="cpu")
    pair = torch.view_as_complex(torch.stack((call["x"], call["x"]), -1).contiguous())
    negative = pair.conj().imag
    assert negative.is_neg()
    strided = pair.imag
    assert strided.stride() == negative.stride()
    causal_conv3d(**call | {"x": strided}, backend="cpu")
    agrees(call | {"x": negative}, backend="cpu")


def test_a_destination_is_looked_at_on_every_call():
    call = small_call()
    space = torch.zeros(2, 8, 2, 4, 4)
    for _ in range(2):
        assert causal_conv3d(**call, out=space[1:], backend="cpu") is not None
        agrees(call, backend="cpu")
    assert torch.allclose(space[1:], causal_conv3d(**call, backend="reference"), atol=1e-4)
    with pytest.raises(InvalidInput, match="out shares memory with x"):
        causal_conv3d(**call | {"x": space[1:]}, out=space[1:], backend="cpu")
    saved = torch.randn(1, 8, 2, 4, 4, requires_grad=True)
    product = saved * space[1:]
    causal_conv3d(**call, out=space[1:], backend="cpu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_a_buffer_is_bound_as_its_body_is():
    call = small_call()
    x, state = call.pop("x"), call.pop("initial_state")
    for _ in range(3):
        buffer = FrameBuffer.empty(x.shape, head_room=2)
        buffer.body.copy_(x)
        got, last = causal_conv3d(buffer, **call, initial_state=state, return_final_state=True)
        expected = causal_conv3d(x, **call, initial_state=state, return_final_state=True, backend="reference")
        assert torch.allclose(got, expected[0], atol=1e-4) and torch.equal(last, expected[1])


def test_threads_bind_and_run():
    calls = []
    for size in range(3, 11):
        x, weight = torch.randn(1, 8, 2, size, 4), torch.randn(8, 8, 3, 3, 3)
        calls.append(({"x": x, "weight": weight}, causal_conv3d(x, weight, backend="reference")))
    OP.bindings.forget()

    def run(number):
        call, expected = calls[number % len(calls)]
        return torch.allclose(causal_conv3d(**call, backend="cpu"), expected, atol=1e-4)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(200)))


def test_calls_of_ever_new_shapes_do_not_pile_up(monkeypatch):
    from causalvae_kernels.core import bind

    monkeypatch.setattr(bind, "_MOST", 4)
    weight = torch.randn(2, 2, 1, 1, 1)
    for width in range(1, 12):
        causal_conv3d(torch.zeros(1, 2, 1, 1, width), weight)
        assert len(OP.bindings) <= 4
