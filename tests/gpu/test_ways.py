"""Ways that `auto` takes only once they were measured (tiles), and aten's epilogue."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from causalvae_kernels import causal_conv3d, explain
from causalvae_kernels.bench.tune_gpu_conv import ways
from causalvae_kernels.core.known_issues import why_conv3d_is_broken
from causalvae_kernels.ops.causal_conv3d.backends import epilogue
from causalvae_kernels.ops.causal_conv3d.spec import error_factor
from causalvae_kernels.parity import Comparison, compare
from causalvae_kernels.workloads import make_conv_call, with_layout
from tests.support.gpu_cases import WIDE

if not torch.cuda.is_available():
    pytest.skip("torch sees no NVIDIA GPU", allow_module_level=True)

HALVES = (torch.bfloat16, torch.float16)
LAST = "channels_last_3d"


def judge(call: dict[str, Any], got: Tensor) -> Comparison:
    """Apply the tolerance rule."""
    doubled = {k: v.double() if isinstance(v, Tensor) else v for k, v in call.items()}
    reference, oracle = (causal_conv3d(**c, backend="reference") for c in (call, doubled))
    return compare(got.contiguous(), reference, oracle, *error_factor(reference.dtype))


@pytest.mark.parametrize("case", [WIDE[0], WIDE[2], WIDE[6]], ids=lambda c: c.name)
@pytest.mark.parametrize("low", HALVES, ids=str)
def test_every_way_that_tune_measures(case, low, seed):
    call = {"stride": (1, 1, 1), "bias": None, **make_conv_call(case, low, seed, "cuda")}
    call.pop("residual", None)
    with torch.no_grad():
        found = ways(call)
        assert found
        for way in found:
            comparison = judge(call, way.run())
            assert comparison.passed, (way.words, comparison)


EPILOGUE = (
    ((1, 96, 4, 30, 52), (LAST, LAST)),
    ((2, 67, 3, 9, 11), (LAST, LAST)),
    ((2, 128, 3, 31, 45), ("contiguous", "contiguous")),
    ((1, 160, 3, 17, 23), (LAST, "contiguous")),
    ((1, 16, 3, 17, 23), ("permuted", "sliced")),
)


@pytest.mark.parametrize(("shape", "layouts"), EPILOGUE, ids=str)
def test_bias_and_residual_in_one_pass(shape, layouts, dtype, seed):
    torch.manual_seed(seed)
    y, residual = (with_layout(torch.randn(shape, device="cuda").to(dtype), layout) for layout in layouts)
    bias = torch.randn(shape[1], device="cuda").to(dtype)
    assert epilogue.why_not_fused(y, residual) is None
    column = bias.view(-1, 1, 1, 1)
    reference, oracle = y + column + residual, y.double() + column.double() + residual.double()
    comparison = compare(epilogue.add_(y, bias, residual), reference, oracle)
    assert comparison.passed, comparison


@pytest.mark.parametrize("precision", ["high", "exact"])
def test_aten_over_a_buffer_allocates_its_output_and_nothing_else(precision, seed):
    """No padded copy, none for the bias or the residual; what cuDNN takes aside is not counted."""
    broken = why_conv3d_is_broken(torch.bfloat16)
    if broken is not None:
        pytest.skip(broken)
    call = make_conv_call(WIDE[1], torch.bfloat16, seed, "cuda")
    call["temporal_mode"] = "valid"
    call["weight"] = call["weight"].contiguous(memory_format=torch.channels_last_3d)
    call["residual"] = call["residual"][:, :, 2:].contiguous(memory_format=torch.channels_last_3d)
    assert explain("causal_conv3d", **call, backend="aten").chosen == "aten"
    with torch.no_grad(), torch.profiler.profile() as profile:
        y = causal_conv3d(**call, backend="aten", precision=precision)
        torch.cuda.synchronize()
    names = {event.key for event in profile.key_averages()}
    assert not names & {"aten::copy_", "aten::clone", "aten::cat", "aten::_to_copy"}, names
    assert ("aten::add_" in names) is (precision == "exact")
    comparison = judge(call, y)
    assert comparison.passed, comparison
