"""Models that nobody wrote rules for: what is recognised, what is refused, and that nothing is disturbed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from causalvae_kernels import InvalidInput, swap
from causalvae_kernels.models import FAMILIES
from causalvae_kernels.models.fingerprint import Snapshot
from causalvae_kernels.models.probe import Modes, probe
from causalvae_kernels.parity import compare
from causalvae_kernels.workloads import make_video
from tests.support import generic_models as zoo
from tests.support.cover import quick_rows
from tests.support.models import assert_parity, replaced_names
from tests.support.tiny_vaes import TINY_VAES, decode, encode


def _conv_of(module: nn.Module) -> nn.Module:
    return next(iter(module._modules.values()), module)


RECOGNISED = {
    "replicate": (lambda: zoo.PaddedConv(3, 5), Modes("replicate", "zeros")),
    "zeros in time": (lambda: zoo.PaddedConv(3, 5, time="constant"), Modes("zeros", "zeros")),
    "reflect": (lambda: zoo.PaddedConv(3, 5, space="reflect"), Modes("replicate", "reflect")),
    "edges": (lambda: zoo.PaddedConv(3, 5, space="replicate"), Modes("replicate", "replicate")),
    "stride": (lambda: zoo.PaddedConv(3, 5, stride=2), Modes("replicate", "zeros")),
    "dilation": (lambda: zoo.PaddedConv(3, 5, dilation=2), Modes("replicate", "zeros")),
    "odd kernel": (lambda: zoo.PaddedConv(3, 5, (2, 5, 1), bias=False), Modes("replicate", "zeros")),
    "wide": (lambda: zoo.PaddedConv(20, 17), Modes("replicate", "zeros")),
    "one that holds it": (lambda: zoo.HeldConv(3, 5), Modes("zeros", "zeros")),
    "padded before": (lambda: nn.Conv3d(3, 5, 3), Modes("valid", "valid")),
    "padded in time before": (lambda: nn.Conv3d(3, 5, 3, padding=(0, 1, 1)), Modes("valid", "zeros")),
    "pointwise": (lambda: nn.Conv3d(3, 5, 1), Modes("replicate", "zeros")),
    "float32 inside": (lambda: zoo.Float32Inside(3, 5), Modes("zeros", "zeros")),
}


@pytest.mark.parametrize("weights", ["random", "zero"])
@pytest.mark.parametrize("name", RECOGNISED)
def test_recognised(name, weights):
    make, modes = RECOGNISED[name]
    module = make()
    if weights == "zero":  # as where a training begins: nothing could be told from their outputs
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    assert probe(module, _conv_of(module)) == modes


LEFT = {
    "state": (lambda: zoo.Stateful(3, 5), "its forward changes last: it keeps a state between calls"),
    "hidden state": (
        lambda: zoo.Counting(3, 5),
        "not the same twice",
    ),
    "another number of frames": (lambda: zoo.Alternating(3, 5), "not the same twice"),
    "weights in place": (lambda: zoo.Rescaling(3, 5), "its forward changes weight: it keeps a state"),
    "other weights": (lambda: zoo.Standardised(3, 5), "it is none of the convolutions"),
    "symmetric": (lambda: zoo.Symmetric(3, 5), "looks at frames that come later"),
    "symmetric as built": (lambda: nn.Conv3d(3, 5, 3, padding=1), "looks at frames that come later"),
    "one frame": (lambda: zoo.OddFirst(3, 5), "with 1 frames it computes something else"),
    "dropout": (lambda: zoo.Noisy(3, 5).eval(), "something else in training mode"),
    "a dtype": (lambda: zoo.Upcasting(3, 5), "none of the convolutions"),
    "another dtype for its own": (
        lambda: zoo.WideForHalf(3, 5).bfloat16(),
        "its output is torch.float32 for torch.bfloat16",
    ),
    "tuple": (lambda: zoo.Tuple(3, 5), "its forward returns a tuple"),
    "in place": (lambda: zoo.Overwriting(3, 5), "its forward changes its input"),
}


@pytest.mark.parametrize("name", LEFT)
def test_left(name):
    make, words = LEFT[name]
    module = make()
    reason = probe(module, _conv_of(module))
    assert isinstance(reason, str) and words in reason


class Quantised(nn.Parameter):
    """A weight that brings its own rules."""


def _quantised(module):
    module.weight = Quantised(module.weight.data)
    return module


class Holder(nn.Module):
    """A model that has a convolution that is recognised, and another module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.good, self.other = zoo.PaddedConv(3, 3), module

    def forward(self, x):
        return self.other(self.good(x))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (zoo.Stateful(3, 3), "keeps a state"),
        (zoo.WideOnly(12, 3), "with all of its channels"),
        (zoo.PaddedConv(3, 3, (3, 2, 2)), "kernel size"),
        (zoo.PaddedConv(3, 3, groups=3), "groups=3"),
        (nn.Conv3d(3, 3, 3, padding=1), "not causal"),
        (nn.GroupNorm(1, 3), "not recognised as a causal convolution"),
        (zoo.PaddedConv(3, 3).to("meta"), "meta"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_the_report_names_what_is_left(module, words):
    with swap(Holder(module)) as handle:
        left = {entry.name: entry.reason for entry in handle.report if not entry.replaced}
        assert replaced_names(handle) == {"good"}
        assert words in left["other"]


def test_a_wrapper_that_is_left_does_not_keep_its_convolution_from_being_replaced():
    with swap(Holder(zoo.NeedsCache(3, 3))) as handle:
        assert replaced_names(handle) == {"good", "other.inner"}


@pytest.mark.parametrize(
    "model",
    [zoo.OtherVAE().to("meta"), nn.Sequential(zoo.PaddedConv(3, 3))[:].to("meta")],
    ids=["vae", "one"],
)
def test_a_model_without_weights_is_refused_for_that(model):
    with pytest.raises(
        InvalidInput, match=r"parameters are on the meta device.* load its weights first"
    ) as e:
        swap(model)
    assert "found none" not in str(e.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(1, 1), "no nn.Conv3d with more than one frame"),
        (nn.Sequential(nn.Conv3d(3, 3, 1), nn.Conv2d(3, 3, 3)), "found none"),
        (nn.Sequential(zoo.Stateful(3, 3)), "keeps a state between calls"),
        (nn.Sequential(nn.Conv3d(3, 3, 3, padding=1)), "not causal"),
        (nn.Sequential(_quantised(zoo.PaddedConv(3, 3))), "its weight is a Quantised"),
    ],
    ids=["linear", "pointwise only", "state", "symmetric", "quantised"],
)
def test_a_model_in_which_nothing_is_recognised_is_refused(model, words):
    with pytest.raises(
        InvalidInput, match=r"expected one of: .*AutoencoderKLCogVideoX.*looked for .*found none"
    ) as e:
        swap(model)
    assert words in str(e.value)
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("backend", ["aten", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_parity(frames, dtype, backend):
    torch.manual_seed(frames)
    reference = zoo.OtherVAE().to(dtype).eval()
    clip = make_video(frames, 15, 22, batch=2, dtype=dtype)
    vae = copy.deepcopy(reference)
    with swap(vae, backend=backend) as handle:
        names = {name for name, module in vae.named_modules() if isinstance(module, nn.Conv3d | zoo.HeldConv)}
        assert replaced_names(handle) == names
        assert_parity(reference, vae, clip)
        assert_parity(reference, vae, clip.contiguous(memory_format=torch.channels_last_3d))
    assert torch.equal(vae(clip), reference(clip))


def test_gradients_and_training_mode():
    torch.manual_seed(3)
    reference = zoo.OtherVAE().train()
    vae, oracle = copy.deepcopy(reference), copy.deepcopy(reference).double()
    clip = make_video(3, 8, 12)
    with swap(vae):
        for model, x in ((vae, clip), (reference, clip), (oracle, clip.double())):
            model(x).square().sum().backward()
    models = (vae, reference, oracle)
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        comparison = compare(*(parameter.grad for parameter in parameters), factor=8)
        assert comparison.passed, comparison


# Classes that have, or will have, rules of their own are recognised without them too.
@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("HunyuanVideo", 5),
        ("HunyuanVideo15", 5),
        ("LTX2", 9),
        ("Cosmos8x8x8", 9),
        ("KVAEVideo", 5),
        ("Kandinsky6SR", 5),
        ("MiniMaxH3", 22),
        ("VidTok(causal)", 8),
        ("Allegro", 24),
    ],
)
@torch.no_grad()
def test_models_of_diffusers_without_their_rules(name, frames, monkeypatch):
    tiny = TINY_VAES[name]
    monkeypatch.delitem(FAMILIES, tiny.cls, raising=False)
    reference, vae = tiny.build(), tiny.build()
    oracle, clip = tiny.build().double(), tiny.video(frames)
    with swap(vae, backend="aten") as handle:
        assert len(replaced_names(handle)) >= 15
        for step in (encode, decode):
            like = step(reference, clip)
            comparison = compare(step(vae, clip), like, step(oracle, clip.double()), factor=8)
            assert comparison.passed, f"{step.__name__}: {comparison}"
            clip = like


def test_anything_but_frames_goes_to_the_original():
    held = zoo.HeldConv(3, 4).eval()
    model = Holder(nn.Identity())
    model.other = held
    x, cache = torch.randn(1, 3, 4, 5, 6), torch.randn(1, 3, 2, 5, 6)

    def calls():
        yield from (held(x), held(x, None), held(video=x), held(x, scale=1.0))
        yield from (held(x, cache), held(x, cache=cache, scale=2.0))

    expected = list(calls())
    with swap(model, backend="cpu") as handle:
        got = list(calls())
        for a, b in zip(got, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        for wrong in ((x[0],), (x[:, :2],), (x.double(),), (None,)):
            outcome = []
            for forward in (held, lambda *a: zoo.HeldConv.forward(held, *a)):
                try:
                    outcome.append(forward(*wrong).shape)
                except Exception as error:
                    outcome.append((type(error), str(error)))
            assert outcome[0] == outcome[1]
        assert "other" in replaced_names(handle)


def test_probing_leaves_no_trace():
    torch.manual_seed(1)
    vae = zoo.OtherVAE().to(torch.bfloat16)
    vae.decoder.eval()
    fired = []
    for module in vae.modules():
        module.register_forward_hook(lambda *_: fired.append(1))
    weights = {n: (p, p._version, p.clone()) for n, p in vae.named_parameters()}
    attributes = {n: dict(m.__dict__) for n, m in vae.named_modules()}
    generator, default = torch.get_rng_state(), torch.get_default_dtype()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        handle = swap(vae)
    assert torch.equal(torch.get_rng_state(), generator) and torch.get_default_dtype() == default
    assert fired == []
    for name, parameter in vae.named_parameters():
        same, version, values = weights[name]
        assert parameter is same and parameter._version == version and torch.equal(parameter, values)
        assert parameter.grad is None
    for name, module in vae.named_modules():
        assert {k: v for k, v in module.__dict__.items() if k != "forward"} == attributes[name]
    handle.restore()
    assert {n: dict(m.__dict__) for n, m in vae.named_modules()} == attributes


def test_hooks_settings_and_weights_that_change_are_seen_on_every_call():
    vae = zoo.OtherVAE().eval()
    plain = copy.deepcopy(vae)
    clip = make_video(3, 8, 12)
    handle = swap(vae, backend="cpu")

    def left():
        return {entry.name: entry.reason for entry in handle.report if not entry.replaced}

    before = set(left())
    for model in (vae, plain):
        model.encoder.conv_in.time = "replicate"
    assert "call handle.refresh()" in left()["encoder.conv_in"]
    assert torch.allclose(vae(clip), plain(clip), atol=1e-5)
    handle.refresh()
    assert set(left()) == before
    assert torch.allclose(vae(clip), plain(clip), atol=1e-5)
    hook = vae.encoder.block.conv2.inner.register_forward_hook(lambda m, a, y: y * 2)
    assert "must be called" in left()["encoder.block.conv2"]
    assert not torch.allclose(vae(clip), plain(clip), atol=1e-3)
    hook.remove()
    for model in (vae, plain):
        model.encoder.conv_in.weight.data.mul_(1.5)
        model.decoder.block.conv1.extra = {}
    assert torch.allclose(vae(clip), plain(clip), atol=1e-5)
    handle.refresh()
    assert "attribute extra holds a dict" in left()["decoder.block.conv1"]
    with torch.no_grad():
        assert torch.allclose(vae(clip), plain(clip), atol=1e-5)


def _doubled(weight):
    return weight * 2


CHANGES = {
    "an attribute that it did not have": lambda m, patch: setattr(m, "gain", 3.0),
    "a tensor where None is the class's": lambda m, patch: setattr(m, "past", torch.ones(1, 3, 2, 10, 14)),
    "a buffer": lambda m, patch: m.register_buffer("gain", torch.tensor(2.0)),
    "a parameter": lambda m, patch: m.register_parameter("gain", nn.Parameter(torch.tensor(2.0))),
    "a list on the instance": lambda m, patch: setattr(m, "weight_function", [_doubled]),
    "another list of the class": lambda m, patch: patch.setattr(type(m), "weight_function", [_doubled]),
    "a list in the class's tuple": lambda m, patch: patch.setattr(type(m), "options", (1.0, [3.0])),
    "an attribute of the class": lambda m, patch: patch.setattr(type(m), "gain", 3.0, raising=False),
    "a base class": lambda m, patch: patch.setattr(zoo.PaddedConv, "gain", 3.0, raising=False),
    "another forward": lambda m, patch: patch.setattr(type(m), "forward", zoo.PaddedConv.forward),
}


GUARDED = ("an attribute that it did not have", "another list of the class", "an attribute of the class")
CHANGED = [(change, False) for change in CHANGES] + [(change, True) for change in GUARDED]
QUICK_CHANGES = CHANGED[: -len(GUARDED) + 1]  # one of them under a compiler


@pytest.mark.parametrize(
    ("change", "compiled"),
    quick_rows(CHANGED, QUICK_CHANGES),
    ids=lambda value: value if isinstance(value, str) else "compile" if value else "eager",
)
@torch.no_grad()
def test_what_a_forward_can_read_decides_on_every_call(change, compiled, monkeypatch):
    torch.manual_seed(5)
    vae = Holder(zoo.Remembering(3, 4)).eval()
    plain, clip = copy.deepcopy(vae), make_video(3, 8, 12)
    handle = swap(vae, backend="aten")
    run = torch.compile(vae, backend="eager", fullgraph=True) if compiled else vae
    assert "other" in replaced_names(handle) and torch.allclose(run(clip), plain(clip), atol=1e-5)
    for model in (vae, plain):
        CHANGES[change](model.other, monkeypatch)
    expected = plain(clip)
    assert "other" not in replaced_names(handle)
    assert torch.allclose(run(clip), expected, atol=1e-5)
    handle.refresh()
    assert torch.allclose(vae(clip), expected, atol=1e-5)


def test_a_snapshot_holds_until_something_is_added_taken_away_or_replaced():
    module = zoo.PaddedConv(3, 4)
    before = Snapshot(module)
    assert before.holds(module)
    module.gain = 2.0
    assert not before.holds(module)
    del module.gain
    assert before.holds(module)
    module.time = "constant"
    assert not before.holds(module)
    del module.time
    assert not before.holds(module)


def test_a_list_of_the_class_that_is_filled_in_place_is_seen():
    vae = Holder(zoo.Remembering(3, 4)).eval()
    plain, clip = copy.deepcopy(vae), make_video(3, 8, 12)
    lists = zoo.Remembering.weight_function, zoo.Remembering.options[1]
    with torch.no_grad(), swap(vae) as handle:
        for changed, value in zip(lists, (_doubled, 7.0), strict=True):
            assert "other" in replaced_names(handle)  # at first, and again once it is as it was
            changed.insert(0, value)
            try:
                assert "other" not in replaced_names(handle)
                assert torch.allclose(vae(clip), plain(clip), atol=1e-5)
            finally:
                del changed[0]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (zoo.Configured(3, 4), "attribute config holds a SimpleNamespace"),
        (zoo.Buffered(3, 4), "a buffer, gain"),
    ],
    ids=["configuration", "buffer"],
)
def test_what_may_hold_a_state_is_left(module, words):
    assert words in probe(module, module)


def test_pickles_of_modules_whose_functions_have_no_name():
    class Local(zoo.PaddedConv):
        halved = staticmethod(lambda x: x / 2)

    vae = Holder(nn.Sequential(zoo.Remembering(3, 4))).eval()
    vae.other[0].weight_function = [_doubled]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo.Remembering, "halved", staticmethod(lambda x: x / 2), raising=False)
        patch.setattr(zoo.PaddedConv, "half", property(lambda self: 0.5), raising=False)
        handle = swap(vae, backend="aten")
        again = pickle.loads(pickle.dumps(vae))
        clip = make_video(3, 8, 12)
        assert "good" in replaced_names(handle) and torch.equal(again(clip), vae(clip))
    assert copy.deepcopy(vae)(clip).shape == vae(clip).shape


class _Counting(TorchDispatchMode):
    """Counts the calls of our convolution."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.name() == "causalvae_kernels::causal_conv3d"
        return func(*args, **(kwargs or {}))


def _calls_of_the_op(call):
    with _Counting() as counting:
        call()
    return counting.calls


BACKWARDS = {
    "scaled": zoo.ScalesGradients,
    "detached padding": zoo.DetachesItsPadding,
    "detached weight": zoo.TrainsItsBiasOnly,
    "no_grad": zoo.WithoutGradients,
    "in training mode": zoo.DetachesWhileTraining,
}


@pytest.mark.parametrize("name", BACKWARDS)
def test_a_backward_of_its_own_is_kept(name):
    torch.manual_seed(2)
    vae, clip = Holder(BACKWARDS[name](3, 4)).train(), make_video(3, 8, 12)
    plain, (height, width) = copy.deepcopy(vae), clip.shape[3:]
    modes = probe(vae.other, vae.other)
    assert modes == Modes("replicate", "zeros", own_backward=True)
    with swap(vae, backend="aten") as handle:
        (reason,) = [entry.reason for entry in handle.report if entry.name == "other"]
        assert "other" in replaced_names(handle) and "where gradients are needed its own forward" in reason
        assert not [e for e in handle.report if e.name == "good" and "gradients" in e.reason]
        for model in (vae, plain):
            x = clip.clone().requires_grad_()
            # As the first in the model, so that the gradient of the input comes from it.
            model.other(x).square().sum().backward() if name != "no_grad" else model.other(x)
            model.given = x.grad
        got, like = ((m.given, m.other.weight.grad, m.other.bias.grad) for m in (vae, plain))
        for a, b in zip(got, like, strict=True):
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
        calls = _calls_of_the_op(lambda: vae.other(clip))
        assert calls == 0
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                assert _calls_of_the_op(lambda: vae.other(clip)) == 1
        vae.requires_grad_(False)
        assert _calls_of_the_op(lambda: vae.other(clip)) == 1
        assert vae(clip).shape == (1, 4, 3, height, width)


def test_a_weight_of_another_type_is_left():
    vae = zoo.OtherVAE().eval()
    _quantised(vae.encoder.conv_in)
    with swap(vae) as handle:
        reasons = {entry.name: entry.reason for entry in handle.report if not entry.replaced}
        assert reasons["encoder.conv_in"] == "its weight is a Quantised"


def test_the_exact_tier_keeps_the_original():
    vae = zoo.OtherVAE().eval()
    clip = make_video(3, 8, 12)
    expected = vae(clip)
    with swap(vae, precision="exact") as handle:
        assert not replaced_names(handle)
        assert torch.equal(vae(clip), expected)


def test_a_handle_pickles_with_the_rules_that_were_made_for_its_model():
    handle = swap(zoo.OtherVAE().eval())
    other = pickle.loads(pickle.dumps(handle))
    assert other.report == handle.report and any(entry.replaced for entry in other.report)
    other.restore()
    assert handle.active and not other.active


@torch.no_grad()
def test_copies_pickles_and_compilers():
    vae = zoo.OtherVAE().eval()
    clip = make_video(3, 8, 12)
    handle = swap(vae, backend="aten")
    expected = vae(clip)
    other = copy.deepcopy(vae)
    again = pickle.loads(pickle.dumps(vae))
    vae.encoder.conv_in.weight.mul_(2)
    handle.restore()
    for model in (other, again):
        assert torch.equal(model(clip), expected)
        assert "forward" in model.encoder.conv_in.__dict__
    compiled, latents = (
        torch.compile(again.decoder, fullgraph=True, backend="eager"),
        torch.randn(1, 4, 3, 5, 6),
    )
    # A compiler has the modules run one by one, and rounds otherwise than the recorded steps.
    assert torch.allclose(compiled(latents), other.decoder(latents), atol=1e-5)


def test_any_number_of_frames_needs_a_rule_that_is_known():
    with pytest.raises(InvalidInput, match="frame_rule: got an object of class OtherVAE"):
        swap(zoo.OtherVAE(), frames="any")


def test_any_number_of_frames_is_refused_where_the_model_pads_in_front_itself():
    with pytest.raises(InvalidInput, match=r"not for AutoencoderVidTok: .* plan_frames"):
        swap(TINY_VAES["VidTok(causal)"].build(), frames="any")


@torch.no_grad()
@pytest.mark.parametrize("name", ["Kandinsky6SR", "MiniMaxH3"])
def test_any_number_of_frames_of_a_model_without_rules(name):
    tiny = TINY_VAES[name]
    vae = tiny.build()
    with swap(vae, frames="any"):
        for frames in (2, 7):
            encoded = vae.encode(tiny.video(frames))
            decoded = vae.decode(encoded.latent_dist.mode(), num_frames=encoded.num_frames).sample
            assert decoded.shape[2] == encoded.num_frames == frames
