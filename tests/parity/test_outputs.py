"""Outputs of a benchmark: what is right passes, and every way to be wrong is found."""

import pytest
import torch

from causalvae_kernels import causal_conv3d, causal_pad3d_
from causalvae_kernels.bench.providers import conv_call
from causalvae_kernels.parity import ConvOracle, ParityFailure, check_conv, check_pad
from causalvae_kernels.workloads import Workload, in_buffer

WORKLOADS = {
    "larger than its windows": Workload("large", 16, 12, 9, 21, 11),
    "smaller than a window": Workload("small", 6, 8, 1, 3, 4),
    "strides": Workload("strides", 5, 7, 7, 18, 9, (3, 3, 3), (2, 2, 2)),
    "frames": Workload("frames", 16, 8, 5, 20, 9, (1, 3, 3)),
    "point": Workload("point", 16, 8, 5, 20, 9, (1, 1, 1)),
    "wide kernel": Workload("wide", 8, 8, 6, 17, 9, (2, 5, 7)),
}


def reference_of(call, dtype=None):
    given = {k: v.to(dtype) if dtype and k != "stride" else v for k, v in call.items()}
    return causal_conv3d(**given, backend="reference")


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_oracle_is_a_window_of_the_whole(name, seed):
    call = conv_call(WORKLOADS[name], torch.float32, seed)
    oracle = ConvOracle(call)
    whole = reference_of(call, torch.float64)
    torch.testing.assert_close(
        oracle._oracle, oracle._gather(lambda window: window.of(whole)), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", WORKLOADS)
def test_right_outputs_pass(name, dtype, seed):
    call = conv_call(WORKLOADS[name], dtype, seed)
    reference = reference_of(call)
    rounded = reference_of(call, torch.float64).to(dtype)
    comparison = ConvOracle(call).compare(rounded, reference)
    assert comparison.passed, comparison


def spoil_a_value(y):
    y[0, 3, 4, 10, 5] += 1


def spoil_a_value_in_a_window(y):
    y[0, 3, 0, 0, 5] += 1


def spoil_a_frame(y):
    y[:, :, 5] = y[:, :, 4]


def spoil_with_nan(y):
    y[0, 0, 4, 10, 0] = float("nan")


def spoil_with_infinity(y):
    y[0, 0, -1, -1, 0] = float("inf")


def spoil_everything_a_little(y):
    y *= 1 + 64 * torch.finfo(y.dtype).eps


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_a_value,
        spoil_a_value_in_a_window,
        spoil_a_frame,
        spoil_with_nan,
        spoil_with_infinity,
        spoil_everything_a_little,
    ],
)
@pytest.mark.parametrize("any_order", [False, True])
def test_wrong_outputs_do_not(spoil, any_order, dtype, seed):
    call = conv_call(WORKLOADS["larger than its windows"], dtype, seed)
    reference = reference_of(call)
    got = reference.clone()
    spoil(got)
    oracle = ConvOracle(call)
    assert oracle.compare(reference, reference, any_order=any_order).passed
    assert not oracle.compare(got, reference, any_order=any_order).passed


def test_another_shape_or_dtype_does_not_pass(seed):
    call = conv_call(WORKLOADS["smaller than a window"], torch.bfloat16, seed)
    oracle, reference = ConvOracle(call), reference_of(call)
    assert "shape" in str(oracle.compare(reference[:, :, :, 1:], reference))
    assert "float32" in str(oracle.compare(reference.float(), reference))


def test_each_of_ours_is_held_against_its_own_layout(seed):
    call = conv_call(WORKLOADS["larger than its windows"], torch.float32, seed)
    right = reference_of(call)
    wrong = right + 1e-3
    oracle = ConvOracle(call)
    providers = {"a": lambda: right, "b": lambda: right, "ours b": lambda: right}
    errors = check_conv(oracle, providers, {"ours b": "b"}, "tiny")
    assert set(errors) == set(providers) and all(0 < error < 1e-6 for error in errors.values())
    # The first one as well: a wrong reference does not vouch for itself.
    for name in providers:
        spoilt = {**providers, name: lambda: wrong}
        with pytest.raises(ParityFailure, match=f"no timing without parity: {name}, tiny: error"):
            check_conv(oracle, spoilt, {"ours b": "b"}, "tiny")


def test_paddings_must_have_equal_bits():
    x = torch.randn(1, 2, 3, 4, 5)
    check_pad({"a": x.clone, "b": x.clone}, 1, "tiny")
    with pytest.raises(ParityFailure, match="no timing without parity: b, tiny: 120 of 120 elements differ"):
        check_pad({"a": x.clone, "b": lambda: x + 1}, 1, "tiny")


def test_a_padding_in_place_does_not_pass_with_what_another_has_written():
    buffer = in_buffer(torch.randn(1, 2, 3, 4, 5), 2)

    def pad(writes):
        if writes:
            causal_pad3d_(buffer)
        return buffer.storage

    providers = {"a": lambda: pad(True), "b": lambda: pad(True)}
    check_pad(providers, 2, "tiny")
    with pytest.raises(ParityFailure, match="no timing without parity: lazy, tiny: 80 of 200 elements"):
        check_pad({**providers, "lazy": lambda: pad(False)}, 2, "tiny")
