"""Plans: exactly the given frames come back, from every VAE, and what is added is what was asked for."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.temporal import (
    DEFAULT_FILL,
    FILLS,
    POLICIES,
    FramePlan,
    frame_rule,
    pad_frames,
    plan_frames,
)
from causalvae_kernels.temporal.model_rules import FAMILIES
from tests.support.tiny_vaes import TINY_VAES, decode, encode

pytest.importorskip("diffusers")

COUNTS = range(1, 50)
RULES = {name: frame_rule(tiny.config_dict()) for name, tiny in TINY_VAES.items()}


def _frames(video: Tensor, dim: int = 2) -> int:
    return video.shape[dim]


# What a plan says


def test_a_plan_reads_as_one_line():
    def line(*args, **kwargs) -> str:
        return str(plan_frames(*args, **kwargs))

    assert line(16, "CogVideoX", "pad", fill="repeat") == (
        "CogVideoX: 16 frames → 17 (1 repeated at the end) → 5 latents → 17 → 16 kept"
    )
    assert line(10, "CogVideoX", "pad", fill="mirror", adapted=True) == (
        "CogVideoX: 10 frames → 13 (3 mirrored at the end) → 4 latents → 13 → 10 kept"
    )
    assert line(6, "Cosmos", "pad", fill="linear") == (
        "Cosmos: 6 frames → 9 (3 continued at the end) → 2 latents → 9 → 6 kept"
    )
    assert line(16, "CogVideoX", "trim") == ("CogVideoX: 16 frames → 9 (the last 7 dropped) → 3 latents → 9")
    assert line(17, "CogVideoX") == "CogVideoX: 17 frames → 5 latents → 17"
    assert line(1, "CogVideoX") == "CogVideoX: 1 frame → 1 latent → 1"
    assert line(6, "VidTok", "pad", fill="repeat") == (
        "VidTok: 6 frames → 12 (3 repeated in front, 3 repeated at the end) → 3 latents → 9 → 6 kept"
    )
    assert line(6, "VidTok", "trim") == (
        "VidTok: 6 frames → 8 (3 repeated in front, the last 1 dropped) → 2 latents → 5"
    )


def test_a_padded_plan_takes_the_smallest_count():
    assert plan_frames(10, "CogVideoX", "pad").run_frames == 17
    assert plan_frames(10, "CogVideoX", "pad", adapted=True).run_frames == 13
    assert plan_frames(13, "CogVideoX", "pad", adapted=True).run_frames == 13
    assert plan_frames(21, "KVAEVideo", "pad").run_frames == 25
    assert plan_frames(1, "Allegro", "pad").run_frames == 24
    assert plan_frames(23, "MiniMaxH3", "pad").run_frames == 39


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", TINY_VAES)
def test_valid_counts_are_left_alone(name, policy):
    rule = RULES[name]
    for count in filter(rule.is_valid, COUNTS):
        plan = plan_frames(count, rule, policy)
        assert (plan.run_frames, plan.decoded_frames, plan.kept_frames) == (count,) * 3
        video = torch.empty(1, 1, count, 1, 1)
        assert plan.apply(video) is video
        decoded = video.movedim(2, rule.time_dim)
        assert plan.undo(decoded) is decoded


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", TINY_VAES)
def test_every_count_comes_back_or_is_refused_by_rule(name, adapted):
    """The promise for all counts, by the rules that `test_frame_rule` checks against the models."""
    rule = RULES[name]
    for count in COUNTS:
        plan = plan_frames(count, rule, "pad", adapted=adapted)
        assert plan.num_latents == rule.num_latents(plan.run_frames, adapted=adapted)
        assert plan.decoded_frames == rule.num_decoded(plan.num_latents, adapted=adapted)
        assert plan.kept_frames == count <= plan.decoded_frames <= plan.run_frames
        assert plan.run_frames - plan.decoded_frames == plan.lead_frames
        below, above = rule.nearest_valid(count, adapted=adapted)
        if not plan.lead_frames:
            assert plan.run_frames == above
            if below is None:
                with pytest.raises(InvalidInput, match="none below"):
                    plan_frames(count, rule, "trim", adapted=adapted)
            else:
                assert plan_frames(count, rule, "trim", adapted=adapted).run_frames == below


# The promise, with the models themselves

SUBSET = (1, 2, 3, 4, 6, 8, 9, 13, 16, 18, 20, 21, 23, 24, 26, 37)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TINY_VAES)
@torch.no_grad()
def test_every_vae_returns_exactly_the_given_frames(name):
    tiny = TINY_VAES[name]
    model = tiny.build()
    rule = frame_rule(model)
    for index, count in enumerate(SUBSET):
        plan = plan_frames(count, model, "pad", fill=FILLS[index % 3])
        run = plan.apply(tiny.video(count))
        assert _frames(run) == plan.run_frames
        latents = encode(model, run)
        assert _frames(latents) == plan.num_latents
        decoded = decode(model, latents)
        assert _frames(decoded, rule.time_dim) == plan.decoded_frames
        kept = plan.undo(decoded)
        assert _frames(kept, rule.time_dim) == count
        assert torch.equal(kept, decoded.narrow(rule.time_dim, 0, count))
        if rule.nearest(count, below=True) is not None:
            trimmed = plan_frames(count, model, "trim")
            decoded = decode(model, encode(model, trimmed.apply(tiny.video(count))))
            assert _frames(trimmed.undo(decoded), rule.time_dim) == trimmed.kept_frames <= count


# The encoders that look at no later frame; the others normalise over time, or are not causal.
CAUSAL = ("Wan2.1", "Wan2.2", "QwenImage", "HunyuanVideo15", "Cosmos8x8x8", "Kandinsky6SR", "VidTok(causal)")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_padding_does_not_reach_earlier_latents(name):
    """Kept frames stand where they went in: with other fills, all latents but the last are the same."""
    tiny = TINY_VAES[name]
    model = tiny.build()
    video = tiny.video(22)
    plans = [plan_frames(22, model, "pad", fill=fill) for fill in ("repeat", "mirror")]
    first, second = (encode(model, plan.apply(video)) for plan in plans)
    assert torch.allclose(first[:, :, :-1], second[:, :, :-1], atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-5)


@torch.no_grad()
def test_the_model_that_drops_leading_frames_gives_what_its_own_forward_gives():
    tiny = TINY_VAES["VidTok(causal)"]
    model, video = tiny.build(), tiny.video(6)
    plan = plan_frames(6, model, "pad", fill="repeat")
    ours = plan.undo(decode(model, encode(model, plan.apply(video))))
    assert torch.equal(ours, model(video, sample_posterior=False).sample)


# Refusals


@pytest.mark.parametrize("name", TINY_VAES)
def test_the_refusal_names_count_rule_neighbours_and_policies(name):
    rule = RULES[name]
    refused = [count for count in COUNTS if not rule.is_valid(count)]
    assert bool(refused) == (name != "HunyuanImageRefiner")
    for count in refused[:: max(len(refused) // 6, 1)]:
        with pytest.raises(InvalidInput) as info:
            plan_frames(count, rule)
        words = str(info.value)
        assert f"{count} frame" in words and rule.words() in words and rule.name in words
        below, above = (rule.nearest(count, below=b) for b in (True, False))
        assert f"{below or 'none'} below, {above} above" in words
        assert "'pad'" in words and ("'trim'" in words) == (below is not None)


def test_the_refusal_says_what_would_happen():
    def words(count: int, rule: object, policy: str = "raise") -> str:
        with pytest.raises(InvalidInput) as info:
            plan_frames(count, rule, policy)
        return str(info.value)

    assert "16 frames would come out; nearest valid counts: 9 below, 17 above" in words(13, "CogVideoX")
    assert "as many would come out, some of them wrong" in words(16, "CogVideoX")
    assert "13 frames would come out" in words(16, "Wan")
    assert "the model refuses them" in words(16, "LTX2Video")
    assert "1 or 8k+1 frames" in words(16, "CogVideoX")
    assert "policies that help: 'pad' (adds frames, returns all given ones)" in words(5, "MiniMaxH3", "trim")
    assert "'trim'" not in words(5, "MiniMaxH3")


def test_a_model_that_cannot_gets_a_sentence_before_any_work():
    model = TINY_VAES["Allegro"].build()
    model.disable_tiling()
    for policy in POLICIES:
        with pytest.raises(InvalidInput, match=r"enable_tiling\(\).*policies that help: none"):
            plan_frames(24, model, policy)
    model = TINY_VAES["HunyuanVideo"].build()
    model.tile_sample_stride_num_frames = 10
    with pytest.raises(InvalidInput, match="13 below, none above; policies that help: 'trim'"):
        plan_frames(20, model, "pad")


@pytest.mark.parametrize("count", [0, -3, 2.0, "17", True, None])
def test_what_is_no_count(count):
    with pytest.raises(InvalidInput, match="expected a positive int"):
        plan_frames(count, "CogVideoX", "pad")


def test_unknown_words_are_named():
    with pytest.raises(InvalidInput, match="policy is 'stretch', expected one of 'raise', 'pad', 'trim'"):
        plan_frames(17, "CogVideoX", "stretch")
    with pytest.raises(InvalidInput, match="fill is 'zeros', expected one of 'repeat', 'mirror', 'linear'"):
        plan_frames(17, "CogVideoX", "pad", fill="zeros")
    with pytest.raises(InvalidInput, match="pad_frames: fill is 'zeros'"):
        pad_frames(torch.zeros(1, 1, 2, 1, 1), 3, "zeros")
    assert DEFAULT_FILL in FILLS


def test_other_shapes_than_planned_are_refused():
    plan = plan_frames(16, "CogVideoX", "pad")
    with pytest.raises(InvalidInput, match=r"15 frames.*expected 16.*CogVideoX: 16 frames → 17"):
        plan.apply(torch.zeros(1, 3, 15, 2, 2))
    with pytest.raises(InvalidInput, match=r"16 frames.*expected 17"):
        plan.undo(torch.zeros(1, 3, 16, 2, 2))
    with pytest.raises(InvalidInput, match="five dimensions"):
        plan.apply(torch.zeros(3, 16, 2, 2))
    with pytest.raises(InvalidInput, match="five dimensions"):
        plan.undo(torch.zeros(3, 17, 2, 2))
    with pytest.raises(InvalidInput, match="at least 5"):
        pad_frames(torch.zeros(1, 1, 3, 1, 1), 4, lead=2)
    with pytest.raises(InvalidInput, match="expected an int"):
        pad_frames(torch.zeros(1, 1, 3, 1, 1), 4.0)
    frozen = plan_frames(17, "CogVideoX")
    with pytest.raises(AttributeError):
        frozen.num_frames = 3


# What is added

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int16)


def _video(seed: int, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    batch, channels, frames, height, width = shape
    if layout == "window":
        shape = (batch, channels, frames + 2, height, width + 3)
    video = (torch.rand(shape, generator=generator) * 250).to(dtype)
    if layout == "channels_last":
        return video.contiguous(memory_format=torch.channels_last_3d)
    if layout == "transposed":
        return video.transpose(3, 4).contiguous().transpose(3, 4)
    return video[:, :, 1:-1, :, 2:-1] if layout == "window" else video


def _oracle(video: Tensor, num_frames: int, fill: str) -> Tensor:
    """The added frames one by one, from their definition, in float64."""
    frames = [video[:, :, t].double() for t in range(video.shape[2])]
    if len(frames) == 1:
        fill = "repeat"
    least, most = (
        torch.tensor([getattr(clip.double(), name)() for clip in video]).view(-1, 1, 1, 1)
        for name in ("min", "max")
    )
    last, step = frames[-1], frames[-1] - frames[len(frames) - 2]
    position, direction = len(frames) - 1, -1
    added = []
    for index in range(num_frames - len(frames)):
        if fill == "repeat":
            added.append(last)
        elif fill == "linear":
            added.append((last + (index + 1) * step).maximum(least).minimum(most))
        else:
            if not 0 <= position + direction < len(frames):
                direction = -direction
            position += direction
            added.append(frames[position])
    return torch.stack([*frames, *added], 2)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*(st.integers(1, high) for high in (3, 4, 6, 3, 3))),
    extra=st.integers(0, 14),
    lead=st.integers(0, 3),
    fill=st.sampled_from(FILLS),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["contiguous", "channels_last", "transposed", "window"]),
)
def test_padding_against_its_definition(seed, shape, extra, lead, fill, dtype, layout):
    video = _video(seed, shape, dtype, layout)
    before = video.clone()
    frames = shape[2]
    padded = pad_frames(video, lead + frames + extra, fill, lead=lead)
    assert torch.equal(video, before)
    assert padded.shape == (*shape[:2], lead + frames + extra, *shape[3:]) and padded.dtype == dtype
    assert (padded is video) == (lead + extra == 0)
    assert torch.equal(padded[:, :, lead : lead + frames], video)
    assert torch.equal(padded[:, :, :lead], video[:, :, :1].expand(-1, -1, lead, -1, -1))
    expected = _oracle(video, frames + extra, fill)
    if fill == "linear" and dtype.is_floating_point:
        # Roundings of a sum of up to `extra` steps in float32, and one to `dtype`.
        size = 250 * (extra + 2) * torch.finfo(torch.float32).eps + 250 * torch.finfo(dtype).eps
        assert (padded[:, :, lead:].double() - expected).abs().max() <= size
    else:
        assert torch.equal(padded[:, :, lead:].double(), expected)
    if layout == "channels_last" and shape[1] > 1 and shape[2] * shape[3] * shape[4] > 1:
        assert padded.is_contiguous(memory_format=torch.channels_last_3d)
    elif layout == "contiguous":
        assert padded.is_contiguous()


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(list(RULES)),
    count=st.integers(1, 60),
    policy=st.sampled_from(["pad", "trim"]),
    fill=st.sampled_from(FILLS),
    adapted=st.booleans(),
    batch=st.integers(1, 2),
)
def test_apply_and_undo_keep_the_given_frames(name, count, policy, fill, adapted, batch):
    rule = RULES[name]
    video = torch.rand(batch, 2, count, 1, 2)
    try:
        plan = plan_frames(count, rule, policy, fill=fill, adapted=adapted)
    except InvalidInput:
        assert policy == "trim" and rule.nearest(count, below=True, adapted=adapted) is None
        return
    run = plan.apply(video)
    assert _frames(run) == plan.run_frames
    # A perfect model: it drops what leads, and gives the rest back in its own layout.
    decoded = run[:, :, plan.lead_frames :].movedim(2, plan.time_dim)
    kept = plan.undo(decoded)
    assert (kept is decoded) == (plan.kept_frames == plan.decoded_frames)
    assert kept is decoded or kept.untyped_storage().nbytes() == kept.nbytes
    kept = kept.movedim(plan.time_dim, 2)
    assert _frames(kept) == plan.kept_frames and torch.equal(kept, video[:, :, : plan.kept_frames])
    assert plan.kept_frames == count if policy == "pad" else plan.kept_frames <= count
    if policy == "trim" and not plan.lead_frames:
        assert run.data_ptr() == video.data_ptr()


def test_the_extremes_of_one_clip_do_not_bound_another():
    video = torch.zeros(2, 1, 2, 1, 1)
    video[0, 0, :, 0, 0] = torch.tensor([1.0, 2.0])
    video[1, 0, :, 0, 0] = torch.tensor([10.0, 0.0])
    padded = pad_frames(video, 4, "linear")
    assert padded[0].flatten().tolist() == [1.0, 2.0, 2.0, 2.0]
    assert padded[1].flatten().tolist() == [10.0, 0.0, 0.0, 0.0]
    video = torch.tensor([0.0, 9.0, 3.0, 4.0]).view(1, 1, 4, 1, 1)
    assert pad_frames(video, 8, "linear").flatten().tolist() == [0.0, 9.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert pad_frames(video, 12, "mirror").flatten().tolist() == [0, 9, 3, 4, 3, 9, 0, 9, 3, 4, 3, 9]


@pytest.mark.parametrize("time_dim", [1, 2])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_what_is_cut_keeps_its_layout_and_nothing_else_alive(frames, last, time_dim):
    plan = plan_frames(frames, "Allegro" if time_dim == 1 else "CogVideoX", "pad")
    decoded = torch.rand(2, 3, plan.decoded_frames, 5, 4)
    if last:
        decoded = decoded.contiguous(memory_format=torch.channels_last_3d)
    decoded = decoded.movedim(2, time_dim)
    kept = plan.undo(decoded)
    if plan.kept_frames == plan.decoded_frames:
        assert kept is decoded
        return
    assert kept.untyped_storage().nbytes() == kept.nbytes
    assert torch.equal(kept, decoded.narrow(time_dim, 0, frames))
    kept = kept.movedim(time_dim, 2)
    assert kept.is_contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)


@pytest.mark.parametrize("fill", FILLS)
def test_gradients_pass_through_a_plan(fill):
    torch.manual_seed(random.randrange(2**31))
    plan = plan_frames(6, "VidTok", "pad", fill=fill)
    video = torch.rand(1, 2, 6, 1, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(1, 2, 12, 1, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: (plan.apply(x) * weights).sum(), (video,))
    decoded = torch.rand(1, 2, 9, 1, 2, requires_grad=True)
    plan.undo(decoded).sum().backward()
    assert decoded.grad.sum() == 6 * 2 * 2 and (decoded.grad[:, :, 6:] == 0).all()


def test_padding_allocates_the_result_once():
    """Frames that are repeated or mirrored are written in place, without a copy of the clip."""
    from torch.profiler import ProfilerActivity, profile

    video = torch.rand(1, 3, 16, 32, 32)
    for fill in ("repeat", "mirror"):
        plan = FramePlan("x", 16, 17, 5, 17, 16, "pad", fill)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            padded = plan.apply(video)
        allocated = sum(
            max(event.cpu_memory_usage, 0) for event in profiled.events() if event.name == "aten::empty"
        )
        assert allocated == padded.nbytes


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("model", FAMILIES)
def test_a_count_of_any_size_is_planned_by_arithmetic(model, adapted):
    """The same happens to it as to a small count a whole number of every family's periods below."""
    pytest.importorskip("diffusers")
    rule = frame_rule(model)
    period = 2**8 * 3 * 5 * 7 * 17
    small = period + 10**12 % period
    for policy, fill in itertools.product(POLICIES, FILLS):
        told = []
        for count in (10**12, small):
            begin = time.process_time()
            try:
                plan = plan_frames(count, rule, policy, fill=fill, adapted=adapted)
                told.append((plan.run_frames - count, plan.decoded_frames - count, plan.kept_frames - count))
            except InvalidInput as error:
                told.append(str(error).partition("which takes")[2].partition(":")[0])
            assert time.process_time() - begin < 1
        assert told[0] == told[1]


def test_a_huge_count_for_a_model_with_a_last_valid_one():
    """Windows that do not meet: nothing beyond the first one comes back."""
    rule = frame_rule("AutoencoderKLHunyuanVideo")
    rule = replace(rule, codec=replace(rule.codec, tile=4001, stride=3))
    # 4001 frames are one window, but 1001 latents are more than one.
    assert rule.nearest_valid(10**12) == (3997, None)
    assert plan_frames(10**12, rule, "trim").run_frames == 3997
