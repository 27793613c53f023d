"""Ways that `auto` takes only once they were measured (tiles, Winograd over time), and aten's epilogue."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from causalvae_kernels import causal_conv3d, explain
from causalvae_kernels.bench.tune_gpu_conv import ways
from causalvae_kernels.core.known_issues import why_conv3d_is_broken
from causalvae_kernels.ops.causal_conv3d import epilogue
from causalvae_kernels.ops.causal_conv3d.spec import error_factor
from causalvae_kernels.ops.causal_conv3d.triton_call import make_call
from causalvae_kernels.ops.causal_conv3d.triton_tiles import (
    Plan,
    capability_of,
    choose,
    why_no_winograd,
    winograd_tile,
)
from causalvae_kernels.parity import Comparison, compare
from causalvae_kernels.workloads import ConvCase, make_conv_call, with_layout
from tests.support.gpu_cases import WIDE

if not torch.cuda.is_available():
    pytest.skip("torch sees no NVIDIA GPU", allow_module_level=True)

HALVES = (torch.bfloat16, torch.float16)
LAST = "channels_last_3d"


def arguments(call: dict[str, Any]) -> tuple[Any, ...]:
    """Return the operator's arguments."""
    tensors = (call.get(name) for name in ("x", "weight", "bias", "initial_state", "residual"))
    stride = call.get("stride", (1, 1, 1))
    return (*tensors, stride, (1, 1, 1), call.get("temporal_mode", "replicate"), "zeros")


def judge(call: dict[str, Any], got: Tensor) -> Comparison:
    """Apply the tolerance rule."""
    doubled = {k: v.double() if isinstance(v, Tensor) else v for k, v in call.items()}
    reference, oracle = (causal_conv3d(**c, backend="reference") for c in (call, doubled))
    return compare(got.contiguous(), reference, oracle, *error_factor(reference.dtype))


def winograd(call: dict[str, Any]) -> tuple[Tensor, bool]:
    """Return what Winograd's form over time computes, and whether its guard raised the flag."""
    from causalvae_kernels.ops.causal_conv3d.triton_run import launches

    prepared = make_call(*arguments(call))
    assert why_no_winograd(prepared) is None
    prepared.out.fill_(float("nan"))
    capability = capability_of(prepared.x.device)
    todo = launches(prepared, choose(prepared, capability, winograd_tile(capability)))
    for launch in todo:
        launch.run()
    flags = [n.arguments["flag_ptr"] for n in todo if n.arguments.get("flag_ptr") is not None]
    return prepared.out, bool(flags[0].item())


def takes_winograd(case: ConvCase) -> bool:
    """Whether the form over time can compute a case: what `why_no_winograd` says without a GPU."""
    return case.kernel_size[0] == 3 and case.shape[2] > 1 and case.out_channels % 8 == 0


@pytest.mark.parametrize("case", [c for c in WIDE if takes_winograd(c)], ids=lambda c: c.name)
@pytest.mark.parametrize("low", HALVES, ids=str)
def test_winograd_over_time(case, low, seed):
    call = make_conv_call(case, low, seed, "cuda")
    got, flag = winograd(call)
    assert not flag, "float16 holds these values: the direct kernel has nothing to do"
    comparison = judge(call, got)
    assert comparison.passed, comparison


@pytest.mark.parametrize("value", [6e4, float("inf"), float("nan")])
def test_the_guard_gives_the_direct_result(value, seed):
    from causalvae_kernels.ops.causal_conv3d.triton_run import run

    call = make_conv_call(WIDE[1], torch.bfloat16, seed, "cuda")
    call["x"][:, :, 1:3, 3, 5] = value
    got, flag = winograd(call)
    prepared = make_call(*arguments(call))
    run(prepared, Plan(choose(prepared, capability_of(prepared.x.device)).direct))
    assert flag and torch.equal(got.nan_to_num(7, 8, 9), prepared.out.nan_to_num(7, 8, 9))


def test_winograd_in_a_captured_graph(seed):
    """The guard is read on the device: beyond float16, the direct kernel computes at a replay."""
    call = make_conv_call(WIDE[1], torch.bfloat16, seed, "cuda")

    def run() -> Tensor:
        from causalvae_kernels.ops.causal_conv3d.triton_run import run as launch

        prepared = make_call(*arguments(call))
        capability = capability_of(prepared.x.device)
        launch(prepared, choose(prepared, capability, winograd_tile(capability)))
        return prepared.out

    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        for scale in (1.0, 1e5):
            call["x"].copy_(scale * make_conv_call(WIDE[1], torch.bfloat16, seed + 1, "cuda")["x"])
            captured.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            comparison = judge(call, captured)
            assert comparison.passed, (scale, comparison)


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
