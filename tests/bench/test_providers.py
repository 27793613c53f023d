"""Every provider gives the same result, from the same call."""

import sys

import pytest
import torch

from causalvae_kernels import causal_conv3d, causal_pad3d
from causalvae_kernels.bench import providers as module
from causalvae_kernels.bench.providers import (
    COMPILED,
    CONV_BASELINES,
    CONV_OURS,
    conv_call,
    conv_providers,
    diffusers_module,
    pad_providers,
)
from causalvae_kernels.core.errors import BackendUnavailable, CausalVAEError, InvalidInput
from causalvae_kernels.core.layout import is_channels_last_3d
from causalvae_kernels.workloads import Workload

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:causalvae_kernels runs without its native CPU kernels")

TINY = {
    "causal": Workload("causal", 5, 7, 4, 6, 9),
    "time stride": Workload("time stride", 4, 6, 5, 6, 7, stride=(2, 1, 1)),
    "frames": Workload("frames", 5, 7, 3, 6, 9, (1, 3, 3)),
    "frames, stride": Workload("frames, stride", 4, 6, 3, 8, 9, (1, 3, 3), (1, 2, 2)),
    "point": Workload("point", 5, 7, 3, 6, 9, (1, 1, 1)),
}


@pytest.mark.parametrize("name", TINY)
def test_all_agree_with_the_oracle(name, seed):
    call = conv_call(TINY[name], torch.float32, seed)
    oracle = causal_conv3d(
        **{k: v.double() if k != "stride" else v for k, v in call.items()}, backend="reference"
    )
    providers = conv_providers(call)
    assert tuple(providers) == (*CONV_BASELINES, *CONV_OURS)
    for provider, run in providers.items():
        got = run()
        assert not got.requires_grad
        torch.testing.assert_close(got.double(), oracle, rtol=1e-4, atol=1e-5, msg=provider)


def test_a_call_is_what_the_workload_says(seed):
    workload = TINY["frames, stride"]
    call = conv_call(workload, torch.bfloat16, seed)
    assert call["x"].shape == workload.shape and call["weight"].shape == workload.weight_shape
    assert call["stride"] == workload.stride and call["bias"].dtype == torch.bfloat16
    again = conv_call(workload, torch.bfloat16, seed)
    assert torch.equal(call["x"], again["x"]) and torch.equal(call["weight"], again["weight"])


def test_each_kernel_gets_the_module_that_the_model_uses(seed):
    kinds = {
        name: type(diffusers_module(conv_call(w, torch.float32, seed))).__name__ for name, w in TINY.items()
    }
    assert kinds["causal"] == kinds["time stride"] == "CogVideoXCausalConv3d"
    assert kinds["point"] == "CogVideoXSafeConv3d"
    assert kinds["frames"] == kinds["frames, stride"] == "_OverFrames"


def test_layouts_reach_the_ops(seed, monkeypatch):
    seen = []

    def spy(x, weight, *arguments, **keywords):
        seen.append((is_channels_last_3d(x), is_channels_last_3d(weight), keywords["backend"]))
        return causal_conv3d(x, weight, *arguments, **keywords)

    monkeypatch.setattr(module, "causal_conv3d", spy)
    providers = conv_providers(conv_call(TINY["causal"], torch.float32, seed), backend="reference")
    for name in CONV_OURS:
        providers[name]()
    assert seen == [(False, False, "reference"), (True, True, "reference")]


def test_compiled_is_the_module_under_torch_compile(seed, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: compiled.append("reset"))

    def compile_it(given, *, dynamic):
        assert dynamic is False
        compiled.append(type(given).__name__)
        return given

    monkeypatch.setattr(torch, "compile", compile_it)
    call = conv_call(TINY["causal"], torch.float32, seed)
    providers = conv_providers(call, compiled=True)
    assert tuple(providers) == (*CONV_BASELINES, COMPILED, *CONV_OURS)
    assert compiled == ["reset", "CogVideoXCausalConv3d"]
    assert torch.equal(providers[COMPILED](), providers["diffusers"]())


def test_a_compiler_that_is_not_there_is_told(seed, monkeypatch):
    def broken(module, **options):
        def run(x):
            raise RuntimeError("No working C++ compiler found\nand much more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(BackendUnavailable, match=r"\(No working C\+\+ compiler found\): install a C\+\+"):
        conv_providers(conv_call(TINY["causal"], torch.float32, seed), compiled=True)


def test_diffusers_that_is_not_there_is_told(seed, monkeypatch):
    name = "diffusers.models.autoencoders"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CausalVAEError, match="pip install 'causalvae-kernels\\[diffusers\\]'"):
        conv_providers(conv_call(TINY["causal"], torch.float32, seed))


def test_paddings_agree_with_the_op(seed):
    x = conv_call(TINY["causal"], torch.float32, seed)["x"]
    expected = causal_pad3d(x, 2, backend="reference")
    for name, run in pad_providers(x, 2).items():
        assert torch.equal(run(), expected), name


def test_nothing_to_pad_is_refused(seed):
    with pytest.raises(InvalidInput, match="got 0 frames"):
        pad_providers(torch.zeros(1, 2, 3, 4, 5), 0)
