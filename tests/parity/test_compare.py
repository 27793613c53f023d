"""The tolerance rule itself: it must fail what is wrong."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from causalvae_kernels import BackendUnavailable, causal_conv3d, swap
from causalvae_kernels.core.backend import Backend
from causalvae_kernels.core.op import op_named
from causalvae_kernels.ops.causal_conv3d.spec import long_sum_error
from causalvae_kernels.parity import (
    compare,
    compare_clips,
    compare_conv,
    compare_exactly,
    compare_round_trips,
    report,
    run_in_chunks,
    verify_ops,
    verify_vae,
)
from causalvae_kernels.workloads import CONV_CASES, ConvCase, make_conv_call
from tests.support.backends import replace_backend
from tests.support.gpu_cases import WIDE

OP = op_named("causal_conv3d")


@pytest.fixture
def truth() -> torch.Tensor:
    return torch.randn(4, 50, dtype=torch.float64)


def test_the_reference_itself_passes(truth):
    assert compare(truth.float(), truth.float(), truth).passed


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_never_pass(truth, bad):
    got = truth.float()
    got[1, 3] = bad
    comparison = compare(got, truth.float(), truth, factor=1e9)
    assert not comparison.passed and "NaN" in str(comparison)
    assert not compare((truth + 1).float(), got, truth).passed, "a broken reference allows nothing"
    assert not compare_exactly(got, truth.float()).passed


def test_nan_equals_nothing():
    nan = torch.tensor([float("nan")])
    assert not compare_exactly(nan, nan).passed


def test_one_wrong_element_fails_though_the_norm_hardly_moves():
    truth = torch.randn(10**6, dtype=torch.float64)
    reference = (truth + 1e-5 * torch.randn_like(truth)).float()
    got = reference.clone()
    got[5] += 1e-3
    comparison = compare(got, reference, truth)
    assert comparison.error < comparison.allowed and not comparison.passed


def test_small_errors_everywhere_fail_by_the_norm(truth):
    reference = (truth * (1 + 1e-6)).float()
    got = (truth * (1 + 3e-6)).float()
    assert not compare(got, reference, truth).passed
    assert compare(got, reference, truth, factor=4).passed


def test_the_factor_is_the_limit(truth):
    reference = (truth + 1e-4).float()
    assert compare((truth - 1.9e-4).float(), reference, truth).passed
    assert not compare((truth - 2.2e-4).float(), reference, truth).passed


def test_in_half_precision_the_median_clip_is_judged():
    truth = torch.randn(5, 2, 3, 4, 4, dtype=torch.float64)
    reference = (truth * (1 + 2**-6)).bfloat16()
    unlucky, worse = reference.clone(), (truth * (1 + 2**-3)).bfloat16()
    unlucky[3] = worse[3]
    factor = (2.0, 2.0)
    assert not compare(unlucky, reference, truth).passed
    assert compare_clips(unlucky, [reference], truth, *factor).passed
    assert not compare_clips(worse, [reference], truth, *factor).passed
    assert not compare_clips(unlucky[:, :1], [reference], truth, *factor).passed
    unlucky[3, 0, 0, 0, 0] = float("nan")
    assert not compare_clips(unlucky, [reference], truth, *factor).passed
    wide = reference.float()
    wide[3] = worse[3]
    assert not compare_clips(wide, [reference.float()], truth, *factor).passed


def test_several_references_count_by_the_worst(truth):
    good, bad = truth.float(), (truth + 1e-3).float()
    got = (truth - 1.5e-3).float()
    assert not compare(got, good, truth).passed
    assert compare(got, [good, bad], truth).passed


def one_by_one(args, precision):
    """Convolve with a kernel of one point, every product added to the sum of those before it."""
    x, weight = args.x, args.weight
    y = torch.zeros(1, weight.shape[0], *x.shape[2:])
    for channel in range(x.shape[1]):
        y.addcmul_(x[:, channel : channel + 1], weight[None, :, channel])
    return y


def test_a_long_sum_in_one_go_is_allowed_but_not_to_a_kernel_that_sums_in_parts(monkeypatch, seed):
    call = make_conv_call(
        ConvCase("long", (1, 2592, 1, 64, 64), 1, (1, 1, 1), bias=False), torch.float32, seed
    )
    oracle = causal_conv3d(call["x"].double(), call["weight"].double(), backend="reference")
    # How the framework sums is up to the machine: here as well as can be.
    monkeypatch.setattr(report, "reference_draws", lambda *_: [oracle.float()])
    for name in ("aten", "cpu"):
        replace_backend(monkeypatch, OP, Backend(name, make=one_by_one))
    comparison = compare_conv(call, "aten")
    assert comparison.passed, comparison
    assert not compare_conv(call, "cpu").passed
    worse = Backend("aten", make=lambda *given: (8 * one_by_one(*given).double() - 7 * oracle).float())
    replace_backend(monkeypatch, OP, worse)
    assert not compare_conv(call, "aten").passed
    assert long_sum_error(torch.bfloat16, call["weight"].shape, "aten") == (0, 0)


@pytest.mark.parametrize("case", [WIDE[0], WIDE[6]], ids=lambda c: c.name)
def test_the_frameworks_long_sums_are_allowed(case, seed):
    """oneDNN adds up channels_last_3d in one go, `F.conv3d` on the same frames in blocks."""
    comparison = compare_conv(make_conv_call(case, torch.float32, seed), "aten")
    assert comparison.passed, comparison


def test_shape_and_dtype_must_agree(truth):
    assert not compare(truth[:2].float(), truth.float(), truth).passed
    assert not compare(truth, truth.float(), truth).passed
    assert not compare_exactly(truth, truth.float()).passed
    assert not compare_exactly(truth[:2], truth).passed


def test_a_broken_kernel_turns_the_report_red(monkeypatch):
    def broken(*args, backend=None, **kwargs):
        out = causal_conv3d(*args, backend=backend, **kwargs)
        if backend == "aten":
            tensor = out[0] if isinstance(out, tuple) else out
            tensor[0, 0, 0, 0, 0] += 0.1
        return out

    monkeypatch.setattr(report, "causal_conv3d", broken)
    rows = verify_ops(quick=True, seed=1)
    failed = {(r.name, r.backend) for r in rows if not r.passed}
    assert failed == {("causal_conv3d", "aten")}


@pytest.mark.parametrize("name", ["causal_pad3d", "downsample_conv", "upsample_conv"])
def test_each_op_is_judged_by_its_own_results(name, monkeypatch):
    op = op_named(name)
    right = op.backends["aten"]
    replace_backend(monkeypatch, op, Backend("aten", make=lambda *given: right.make(*given) + 0.1))
    monkeypatch.setattr(report, "all_ops", lambda: [op])
    rows = verify_ops(quick=True, seed=5)
    assert {row.backend for row in rows if not row.passed} == {"aten"}


class Rough(torch.nn.Module):
    """A model that is further from the truth with two clips in the batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def encode(self, x):
        error = 0.0 if x.dtype == torch.float64 else 1e-5 if x.shape[0] == 1 else 1e-3
        latents = x * (self.weight + error)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, z):
        return SimpleNamespace(sample=z)


def test_the_reference_is_drawn_with_two_clips_in_the_batch_as_well():
    clip = torch.randn(1, 3, 2, 4, 4)
    for error, passes in ((1e-3, True), (0.1, False)):
        found = compare_round_trips(Rough(), Rough().double(), clip, (clip * (1 + error),) * 2)
        assert [comparison.passed for _, comparison in found] == [passes] * 2


def test_a_backend_that_cannot_run_is_reported_as_such(monkeypatch):
    def refuses(*args, backend=None, **kwargs):
        if backend == "cpu":
            raise BackendUnavailable(
                "causal_conv3d: backend 'cpu' cannot run this call: no (decided by argument)"
            )
        return causal_conv3d(*args, backend=backend, **kwargs)

    monkeypatch.setattr(report, "causal_conv3d", refuses)
    rows = [r for r in verify_ops(quick=True, seed=2) if (r.name, r.backend) == ("causal_conv3d", "cpu")]
    assert [r.skipped for r in rows] == [True]


def test_progress_is_told():
    seen = []
    verify_ops(lambda done, total, name: seen.append((done, total)), quick=True, seed=3)
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] == len(seen) - 1


def test_verify_vae_is_green_and_notices_a_wrong_swap():
    diffusers = pytest.importorskip("diffusers")
    from causalvae_kernels.workloads import odd_cogvideox_config

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLCogVideoX(**odd_cogvideox_config())
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    rows = verify_vae(vae, swap, quick=True, frame_counts=(1, 9), size=(16, 24))
    assert rows and all(r.passed for r in rows), rows
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())

    class Wrong:
        def __init__(self, model, precision, backend):
            self.model = model

        def __enter__(self):
            self.model.decoder.conv_out.conv.bias.data += 0.01

        def __exit__(self, *_):
            self.model.decoder.conv_out.conv.bias.data -= 0.01

    rows = verify_vae(vae, Wrong, quick=True, frame_counts=(1,), size=(16, 24))
    assert not any(r.passed for r in rows)


def test_chunks_must_cover_the_clip():
    with pytest.raises(ValueError, match="expected T = 4"):
        run_in_chunks(lambda x, initial_state: (x, x), torch.zeros(1, 1, 4, 1, 1), (1, 2))


def test_a_backend_is_compared_on_what_it_can_run(monkeypatch):
    op = op_named("causal_conv3d")

    def why_not(args, precision, out):
        return "three channels are not enough" if args.x.shape[1] == 3 else None

    replace_backend(monkeypatch, op, replace(op.backends["aten"], why_not=why_not))
    rows = {(r.name, r.backend): r for r in verify_ops(quick=True, seed=4)}
    row = rows["causal_conv3d", "aten"]
    refused = sum(case.shape[1] == 3 for case in CONV_CASES)
    assert refused and row.passed and not row.skipped
    assert (
        row.detail == f"{2 * (len(CONV_CASES) - refused) + 1} comparisons"
    )  # fresh, into memory, and in chunks
