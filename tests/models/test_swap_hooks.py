"""Hooks of torch, accelerate and diffusers on a swapped model: set before or after, seen on every call."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels import restore, swap
from causalvae_kernels.models.hooks import type_name
from tests.support.cover import quick
from tests.support.models import assert_parity, clip_of, replaced_names, round_trip

BLOCK = "decoder.up_blocks.0.resnets.0"
CONV = f"{BLOCK}.conv1"


@pytest.fixture(params=["before", "after"])
def when(request: pytest.FixtureRequest) -> str:
    """Whether the hook is set before or after the swap."""
    return request.param


def _swapped(vae, when, hook):
    """Swap and hook in the given order; return the handle and what `hook` returned."""
    if when == "before":
        made = hook(vae)
        return swap(vae), made
    handle = swap(vae)
    return handle, hook(vae)


@pytest.mark.parametrize(
    "path", ["", ".conv1", ".conv1.conv", ".norm1.conv_y.conv", ".norm1.norm_layer", ".nonlinearity"]
)
def test_forward_hooks_fire_and_see_what_they_saw(path, when, build):
    plain = build()
    seen: dict[str, list[torch.Tensor]] = {"plain": [], "swapped": []}

    def listen(key):
        def hook(module, args, output):
            seen[key].append((output[0] if isinstance(output, tuple) else output).clone())

        return hook

    plain.get_submodule(BLOCK + path).register_forward_hook(listen("plain"))
    expected = round_trip(plain, clip_of(9))[1]
    vae = build()
    handle, hook = _swapped(
        vae, when, lambda m: m.get_submodule(BLOCK + path).register_forward_hook(listen("swapped"))
    )
    got = round_trip(vae, clip_of(9))[1]
    assert len(seen["swapped"]) == len(seen["plain"]) > 0
    for a, b in zip(seen["swapped"], seen["plain"], strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-4)
    assert torch.allclose(got, expected, atol=1e-4)
    hooked = {e.name: e.reason for e in handle.report if not e.replaced and "hook" in e.reason}
    if path not in ("", ".nonlinearity"):  # for which there is no rule
        assert hooked, "the report must say which modules rest because of the hook"
    hook.remove()
    assert not [e for e in handle.report if "hook" in e.reason and not e.replaced]


def test_a_pre_hook_that_rewrites_weights_is_honoured(when, build):
    """As old-style weight_norm does: the weight exists only once the child is called."""

    def double(module, args):
        module.weight = torch.nn.Parameter(module.base * 2, requires_grad=False)

    def hook(vae):
        conv = vae.get_submodule(BLOCK).conv1.conv
        conv.base = conv.weight.detach().clone()
        conv.register_forward_pre_hook(double)

    plain, vae = build(), build()
    hook(plain)
    _swapped(vae, when, hook)
    assert torch.allclose(round_trip(vae, clip_of(5))[1], round_trip(plain, clip_of(5))[1], atol=1e-4)


def test_parametrization(when, build):
    class Half(torch.nn.Module):
        def forward(self, weight):
            return weight * 0.5

    def parametrize(vae):
        conv = vae.get_submodule(BLOCK).conv2.conv
        torch.nn.utils.parametrize.register_parametrization(conv, "weight", Half())

    plain, vae = build(), build()
    parametrize(plain)
    handle, _ = _swapped(vae, when, parametrize)
    assert torch.allclose(round_trip(vae, clip_of(5))[1], round_trip(plain, clip_of(5))[1], atol=1e-4)
    reasons = {e.name: e.reason for e in handle.report}
    assert "Parametrized" in reasons[f"{BLOCK}.conv2"]


def test_a_foreign_child_is_called(when, build):
    """A LoRA-like wrapper in place of the convolution."""

    class Wrapped(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x) + 1

    def wrap(vae):
        block = vae.get_submodule(BLOCK)
        block.conv2.conv = Wrapped(block.conv2.conv)

    plain, vae = build(), build()
    wrap(plain)
    _swapped(vae, when, wrap)
    assert torch.allclose(round_trip(vae, clip_of(5))[1], round_trip(plain, clip_of(5))[1], atol=1e-4)


def test_a_foreign_forward_on_an_instance_is_kept(when, build):
    def patch(vae):
        conv = vae.get_submodule(BLOCK).conv1
        original = conv.forward
        conv.forward = lambda *args, **kwargs: tuple(
            3 * o if i == 0 else o for i, o in enumerate(original(*args, **kwargs))
        )

    plain, vae = build(), build()
    patch(plain)
    handle, _ = _swapped(vae, when, patch)
    assert torch.allclose(round_trip(vae, clip_of(5))[1], round_trip(plain, clip_of(5))[1], atol=1e-4)
    handle.restore()
    assert "forward" in vae.get_submodule(BLOCK).conv1.__dict__, "what is not ours is not deleted"
    assert torch.equal(round_trip(vae, clip_of(5))[1], round_trip(plain, clip_of(5))[1])


def test_process_wide_hooks(build):
    vae, calls = build(), []
    swap(vae)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda m, i, o: calls.append(type(m).__name__)
    )
    try:
        round_trip(vae, clip_of(1))
    finally:
        handle.remove()
    assert calls.count("CogVideoXSafeConv3d") > 50 and calls.count("SiLU") > 10


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16])
def test_layerwise_casting(storage, when, build):
    def cast(vae):
        vae.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)

    plain, vae = build(), build()
    cast(plain)
    handle, _ = _swapped(vae, when, cast)
    clip = clip_of(9)
    assert torch.allclose(round_trip(vae, clip)[1], round_trip(plain, clip)[1], atol=1e-3)
    assert vae.get_submodule(BLOCK).conv1.conv.weight.dtype == storage
    assert any("diffusers hooks (layerwise_casting)" in e.reason for e in handle.report)


@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_group_offloading(level, when, build):
    def offload(vae):
        options = {"num_blocks_per_group": 1} if level == "block_level" else {}
        vae.enable_group_offload(
            torch.device("cpu"), torch.device("cpu"), offload_type=level, use_stream=False, **options
        )

    plain, vae = build(), build()
    try:
        offload(plain)
    except (ValueError, RuntimeError) as error:
        pytest.skip(f"diffusers does not offload to a CPU here: {error}")
    _swapped(vae, when, offload)
    clip = clip_of(9)
    assert torch.allclose(round_trip(vae, clip)[1], round_trip(plain, clip)[1], atol=1e-4)


@pytest.mark.parametrize("kind", quick(["model", "sequential"], ["sequential"]))
def test_accelerate_offloading(kind, when, build):
    accelerate = pytest.importorskip("accelerate")

    def offload(vae):
        if kind == "model":
            accelerate.cpu_offload_with_hook(vae, torch.device("cpu"))
        else:
            accelerate.cpu_offload(vae, torch.device("cpu"), offload_buffers=True)

    plain, vae = build(), build()
    offload(plain)
    handle, _ = _swapped(vae, when, offload)
    clip = clip_of(9)
    assert torch.allclose(round_trip(vae, clip)[1], round_trip(plain, clip)[1], atol=1e-4)
    assert torch.allclose(vae(clip).sample, plain(clip).sample, atol=1e-4)
    if kind == "sequential":
        assert any("_hf_hook" in e.reason for e in handle.report)
    handle.restore()
    assert torch.allclose(round_trip(vae, clip)[1], round_trip(plain, clip)[1], atol=1e-4)
    accelerate.hooks.remove_hook_from_module(vae, recurse=True)
    assert_parity(build(), vae, clip)


def test_diffusers_hook_around_ours_is_taken_out_cleanly(build):
    """A hook set on a replaced module wraps our forward; restore clears the flag below it."""
    from diffusers.hooks import HookRegistry, ModelHook

    class Plus(ModelHook):
        def post_forward(self, module, output):
            return output[0] + 1, output[1]

    plain, vae = build(), build()
    handle = swap(vae)
    for model in (plain, vae):
        conv = model.get_submodule(CONV)
        HookRegistry.check_if_exists_or_initialize(conv).register_hook(Plus(), "plus")
    clip = clip_of(5)
    expected = round_trip(plain, clip)[1]
    assert torch.allclose(round_trip(vae, clip)[1], expected, atol=1e-4)
    handle.restore()
    assert torch.equal(round_trip(vae, clip)[1], expected)
    for model in (plain, vae):
        model.get_submodule(CONV)._diffusers_hook.remove_hook("plus", recurse=False)
    assert torch.equal(round_trip(vae, clip)[1], round_trip(plain, clip)[1])
    again = swap(vae)
    assert CONV in replaced_names(again)
    assert_parity(build(), vae, clip)
    restore(vae)


def test_only_the_modules_of_torch_nn_go_by_their_short_name():
    """torch.ao's quantisation-aware Conv2d is also called Conv2d, and computes something else."""
    assert type_name(torch.nn.Conv2d(1, 1, 1)) == "Conv2d"
    config = torch.ao.quantization.get_default_qat_qconfig()
    fake_quantised = torch.ao.nn.qat.Conv2d(1, 1, 1, qconfig=config)
    assert type_name(fake_quantised) != "Conv2d"


def test_refresh_takes_in_what_became_free(build):
    vae = build()
    conv = vae.get_submodule(CONV)
    original = conv.forward
    conv.forward = lambda *args, **kwargs: original(*args, **kwargs)
    handle = swap(vae)
    assert CONV not in replaced_names(handle)
    del conv.forward
    handle.refresh()
    assert CONV in replaced_names(handle)
    assert_parity(build(), vae, clip_of(5))


@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_each_kind_of_process_wide_hook_has_every_module_called(kind, build):
    vae = build()
    with swap(vae) as handle:
        assert replaced_names(handle)
        hook = getattr(torch.nn.modules.module, f"register_module_{kind}_hook")(lambda *_: None)
        try:
            assert not replaced_names(handle)
            assert any("process-wide" in entry.reason for entry in handle.report)
        finally:
            hook.remove()
        assert replaced_names(handle)
