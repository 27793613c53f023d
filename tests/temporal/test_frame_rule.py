"""Frame rules against the models themselves: tiny VAEs run every count, and a table keeps what they did."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.temporal import FrameRule, frame_rule
from causalvae_kernels.temporal.model_rules import FAMILIES
from tests.support.tiny_vaes import TINY_VAES, TinyVAE, decode, encode

pytest.importorskip("diffusers")

COUNTS = range(1, 50)
TABLE = json.loads((Path(__file__).parent / "frame_counts.json").read_text())["vae"]


def _measured(tiny: TinyVAE, counts: Any = COUNTS, prepare: Any = lambda model: None, **overrides: Any):
    """Yield (frames, latents, decoded frames) as the model gives them, None for what it refuses."""
    model = None
    for count in counts:
        if model is None:
            model = tiny.build(**overrides)
            prepare(model)
        latents = decoded = None
        try:
            z = encode(model, tiny.video(count))
            latents = z.shape[2]
            decoded = decode(model, z).shape[frame_rule(model).time_dim]
        except (RuntimeError, ValueError, AssertionError, NotImplementedError):
            # Magvit keeps what it has seen in its modules, and so spoils the next call.
            model = None
        yield count, latents, decoded


def _by_rule(rule: FrameRule, count: int) -> tuple[int, int | None, int | None]:
    latents = rule.num_latents(count)
    return count, latents, None if latents is None else rule.num_decoded(latents)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TINY_VAES)
@torch.no_grad()
def test_the_models_do_what_the_rules_say(name):
    tiny = TINY_VAES[name]
    rule = frame_rule(tiny.build())
    for row in _measured(tiny):
        assert row == _by_rule(rule, row[0])


@pytest.mark.parametrize("name", TINY_VAES)
def test_the_rules_give_the_table(name):
    rule = frame_rule(TINY_VAES[name].config_dict())
    rows = {int(count): row for count, row in TABLE[name].items()}
    assert list(rows) == list(COUNTS)
    for count, row in rows.items():
        assert list(_by_rule(rule, count)[1:]) == row, count


def test_the_table_holds_the_known_failures():
    assert {name for name in TABLE} == set(TINY_VAES)
    assert TABLE["CogVideoX"]["13"] == [4, 16] and TABLE["CogVideoX"]["16"] == [4, 16]
    assert TABLE["Wan2.1"]["16"] == [4, 13] and TABLE["KVAEVideo"]["21"] == [6, 18]
    assert TABLE["Cosmos8x8x8"]["6"] == [2, 9] and TABLE["LTX2"]["8"] == [None, None]
    assert TABLE["MiniMaxH3"]["17"] == [2, None]


def _set(**attributes: Any):
    def prepare(model: Any) -> None:
        for name, value in attributes.items():
            assert hasattr(model, name)
            setattr(model, name, value)

    return prepare


VARIANTS = {
    "CogVideoX-chunks-16-4": (
        "CogVideoX",
        {},
        _set(num_sample_frames_batch_size=16, num_latent_frames_batch_size=4),
        "1 or 8k+1 frames",
    ),
    "CogVideoX-chunks-6-3": (
        "CogVideoX",
        {},
        _set(num_sample_frames_batch_size=6, num_latent_frames_batch_size=3),
        "1 or 9 frames",
    ),
    "CogVideoX-chunks-of-1": ("CogVideoX", {}, _set(num_latent_frames_batch_size=1), "1 frame"),
    "CogVideoX-ratio-1": ("CogVideoX", {"temporal_compression_ratio": 1}, _set(), "any number of frames"),
    "CogVideoX-ratio-2": ("CogVideoX", {"temporal_compression_ratio": 2}, _set(), "1 or 4k+1 frames"),
    "CogVideoX-ratio-8": ("CogVideoX", {"temporal_compression_ratio": 8}, _set(), "1 or 16k+1 frames"),
    "Wan-one-level": ("Wan2.1", {"temperal_downsample": [False, False, True]}, _set(), "1 or 4k+1 frames"),
    "Wan-three-levels": ("Wan2.1", {"temperal_downsample": [True] * 3}, _set(), "1 frame"),
    "HunyuanVideo-tile-12-8": (
        "HunyuanVideo",
        {},
        _set(tile_sample_min_num_frames=12, tile_sample_stride_num_frames=8),
        "1 or 4k+1 frames",
    ),
    "HunyuanVideo-tile-12-10": (
        "HunyuanVideo",
        {},
        _set(tile_sample_min_num_frames=12, tile_sample_stride_num_frames=10),
        "1, 5 or 9 frames",
    ),
    "HunyuanVideo-gaps": (
        "HunyuanVideo",
        {},
        _set(tile_sample_min_num_frames=8, tile_sample_stride_num_frames=12),
        "1, 5 or 9 frames",
    ),
    "HunyuanVideo-no-stride": (
        "HunyuanVideo",
        {},
        _set(tile_sample_stride_num_frames=3),
        "1, 5, 9 or 13 frames",
    ),
    "HunyuanVideo-whole": (
        "HunyuanVideo",
        {},
        _set(use_framewise_encoding=False, use_framewise_decoding=False),
        "1 or 4k+1 frames",
    ),
    "HunyuanVideo15-ratio-2": (
        "HunyuanVideo15",
        {"temporal_compression_ratio": 2},
        _set(),
        "1 or 2k+1 frames",
    ),
    "LTX0.9.0-tiles": ("LTX0.9.0", {}, _set(use_framewise_decoding=True), "1 or 8k+1 frames"),
    "LTX0.9.0-patches": (
        "LTX0.9.0",
        {"patch_size_t": 2, "in_channels": 6, "out_channels": 6},
        _set(),
        "16k+2 frames",
    ),
    "LTX0.9.5-wrong-ratio": (
        "LTX0.9.5",
        {"temporal_compression_ratio": None},
        _set(use_framewise_decoding=True),
        "1 frame",
    ),
    "LTX2-tiles": ("LTX2", {}, _set(use_framewise_decoding=True), "1 or 8k+1 frames"),
    "Cosmos-ratio-4": ("Cosmos8x8x8", {"temporal_compression_ratio": 4}, _set(), "1 or 4k+1 frames"),
    "Cosmos-folded": ("Cosmos8x8x8", {"patch_type": "rearrange"}, _set(), "1 or 8k+1 frames"),
    "Cosmos-patch-2": ("Cosmos8x8x8", {"patch_size": 2}, _set(), "1 frame"),
    "Mochi-ratio-4": ("Mochi", {"temporal_expansions": (1, 2, 2)}, _set(), "1 or 4k+1 frames"),
    "Mochi-keeps-lead": ("Mochi", {}, _set(drop_last_temporal_frames=False), "no number of frames"),
    "Mochi-framewise": ("Mochi", {}, _set(use_framewise_encoding=True), "no number of frames"),
    "Magvit-groups-of-8": (
        "Magvit(EasyAnimate)",
        {},
        _set(num_sample_frames_batch_size=8),
        "1 or 4k+1 frames",
    ),
    "Magvit-groups-of-6": ("Magvit(EasyAnimate)", {}, _set(num_sample_frames_batch_size=6), "1 or 5 frames"),
    "Magvit-one-level": (
        "Magvit(EasyAnimate)",
        {
            f"{d.lower()}_block_types": (f"Spatial{d}Block3D",) * 2 + (f"SpatialTemporal{d}Block3D",) * 2
            for d in ("Down", "Up")
        },
        _set(),
        "1 or 2k+1 frames",
    ),
    "Allegro-window-16": (
        "Allegro",
        {},
        _set(kernel=(16, 16, 16), stride=(8, 8, 8)),
        "8k frames, 16 at least",
    ),
    "Allegro-untiled": (
        "Allegro",
        {},
        _set(use_tiling=False),
        "no number of frames before its enable_tiling() is called",
    ),
    "KVAE-ratio-8": (
        "KVAEVideo",
        {"temporal_compress_times": 8},
        _set(),
        "1, 9, 17, 33, 49, 65, 81, 97, … frames",
    ),
    "Kandinsky6-ratio-8": (
        "Kandinsky6SR",
        {"temporal_compression_ratio": 8, "temporal_compression_start_level": 0},
        _set(),
        "1 or 8k+1 frames",
    ),
    "Kandinsky6-start-2": (
        "Kandinsky6SR",
        {"temporal_compression_ratio": 2, "temporal_compression_start_level": 2},
        _set(),
        "1 or 2k+1 frames",
    ),
    "MiniMaxH3-clip-13": (
        "MiniMaxH3",
        {"clip_length": 13, "token_drop": 2},
        _set(),
        "13k+5 frames, 18 at least",
    ),
    "MiniMaxH3-drops-none": ("MiniMaxH3", {"clip_length": 16, "token_drop": 0}, _set(), "16k frames"),
    "MiniMaxH3-drops-a-clip": ("MiniMaxH3", {"clip_length": 9, "token_drop": 4}, _set(), "1 frame"),
    "VidTok-not-causal": ("VidTok(causal)", {"is_causal": False}, _set(), "16k frames"),
    "VidTok-one-level": (
        "VidTok(causal)",
        {"tempo_ds": [2], "tempo_us": [2]},
        _set(),
        "1 or 2k+1 frames, with 1 copy of the first frame in front",
    ),
    "VidTok-tiled": (
        "VidTok(causal)",
        {},
        _set(use_tiling=True),
        "1 or 4k+1 frames, with 3 copies of the first frame in front",
    ),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_other_settings_give_other_rules_and_the_models_follow(variant):
    name, overrides, prepare, words = VARIANTS[variant]
    tiny = TINY_VAES[name]
    model = tiny.build(**overrides)
    prepare(model)
    rule = frame_rule(model)
    assert rule.words() == words
    counts = [*range(1, 21), 22, 24, 25, 29, 33, 34, 35, 39, 41]
    for count, latents, decoded in _measured(tiny, counts, prepare, **overrides):
        expected = _by_rule(rule, count)
        if decoded is None:
            assert expected[2] is None, count
        else:
            assert expected == (count, latents, decoded)


WORDS = {
    "CogVideoX": "1 or 8k+1 frames",
    "HunyuanImageRefiner": "any number of frames",
    "LTX0.9.0": "1 or 8k+1 frames",
    "LTX0.9.5": "1 or 8k+1 frames",
    "LTX2": "1 or 8k+1 frames",
    "Cosmos8x8x8": "1 or 8k+1 frames",
    "Mochi": "1 or 6k+1 frames",
    "Allegro": "16k+8 frames, 24 at least",
    "KVAEVideo": "1, 5, 9, 13, 17, 25, 29, 33, … frames",
    "MiniMaxH3": "17k+5 frames, 22 at least",
    "VidTok(causal)": "1 or 4k+1 frames, with 3 copies of the first frame in front",
}


@pytest.mark.parametrize("name", TINY_VAES)
def test_words_and_valid_counts(name):
    rule = frame_rule(TINY_VAES[name].config_dict())
    assert rule.words() == WORDS.get(name, "1 or 4k+1 frames")
    table = {int(count): row for count, row in TABLE[name].items()}
    for count in COUNTS:
        if rule.is_valid(count):
            assert table[count][1] == count
        elif table[count][1] == count:
            # As many come back, but CogVideoX blends the first ones, and Allegro leaves the last ones black.
            assert name in ("CogVideoX", "Allegro") and count % 4 == 0


RATIOS = {"HunyuanImageRefiner": 1, "LTX0.9.0": 8, "LTX0.9.5": 8, "LTX2": 8, "Cosmos8x8x8": 8, "Mochi": 6}


@pytest.mark.parametrize("name", TINY_VAES)
def test_how_many_frames_a_latent_stands_for(name):
    assert frame_rule(TINY_VAES[name].config_dict()).temporal_compression_ratio == RATIOS.get(name, 4)


@torch.no_grad()
def test_the_last_block_of_ltx_decides_how_many_blocks_there_are():
    mixed = ("LTXVideoDownBlock3D",) * 3 + ("LTXVideo095DownBlock3D",)
    model = TINY_VAES["LTX0.9.0"].build(down_block_types=mixed, spatio_temporal_scaling=(True,) * 4)
    assert encode(model, torch.rand(1, 3, 17, 64, 64)).shape[2] == frame_rule(model).num_latents(17) == 3


@torch.no_grad()
def test_allegro_returns_zeros_where_no_window_lies():
    tiny = TINY_VAES["Allegro"]
    model = tiny.build()
    for count, covered in ((20, 0), (28, 24), (24, 24), (40, 40)):
        assert frame_rule(model).is_valid(count) == (count == covered)
        # With nothing to decode from, only the borders of the windows could differ from zero.
        frames = decode(model, encode(model, tiny.video(count)))
        assert frames.shape[:2] == (1, count)
        assert [bool(frame.any()) for frame in frames[0]] == [t < covered for t in range(count)]


@torch.no_grad()
def test_cogvideox_blends_first_frames_of_a_count_that_it_was_not_trained_on():
    """Of 16 frames the second changes the first latent; of 17 frames, which are valid, it does not."""
    tiny = TINY_VAES["CogVideoX"]
    model = tiny.build()
    # GroupNorm looks at the whole chunk; without it, only the resampling does.
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    for count in (16, 17):
        video = tiny.video(count)
        changed = video.clone()
        changed[:, :, 1] = 0
        first, second = encode(model, video), encode(model, changed)
        assert torch.allclose(first[:, :, 0], second[:, :, 0], atol=1e-6) == frame_rule(model).is_valid(count)


def test_cogvideox_takes_the_trained_path_and_once_adapted_any_4k_plus_1():
    rule = frame_rule("CogVideoX")
    assert [n for n in COUNTS if rule.is_valid(n)] == [1, 9, 17, 25, 33, 41, 49]
    assert [n for n in COUNTS if rule.is_valid(n, adapted=True)] == list(range(1, 50, 4))
    assert rule.words(adapted=True) == "1 or 4k+1 frames"
    assert [rule.num_decoded(n, adapted=True) for n in (1, 2, 4, 5)] == [1, 5, 13, 17]
    assert [rule.num_latents(n, adapted=True) for n in (1, 5, 13, 16, 17)] == [1, 2, 4, None, 5]
    assert rule.num_latents(0) is None and rule.num_decoded(0) is None and not rule.is_valid(0)


def test_adapted_cogvideox_needs_chunks_of_whole_latents():
    model = TINY_VAES["CogVideoX"].build()
    model.num_sample_frames_batch_size = 6
    rule = frame_rule(model)
    assert [n for n in range(1, 40) if rule.is_valid(n, adapted=True)] == [1, 5, 9]
    model.num_sample_frames_batch_size = 12
    rule = frame_rule(model)
    assert [n for n in range(1, 40) if rule.is_valid(n, adapted=True)] == list(range(1, 40, 4))


@pytest.mark.parametrize("name", [name for name in TINY_VAES if name != "CogVideoX"])
def test_others_have_nothing_to_adapt(name):
    rule = frame_rule(TINY_VAES[name].config_dict())
    for count in COUNTS:
        assert rule.num_latents(count, adapted=True) == rule.num_latents(count)
        assert rule.is_valid(count, adapted=True) == rule.is_valid(count)


@pytest.mark.parametrize("name", TINY_VAES)
def test_nearest_valid_is_the_nearest(name):
    rule = frame_rule(TINY_VAES[name].config_dict())
    valid = [n for n in range(1, 200) if rule.is_valid(n)]
    for count in COUNTS:
        below = max((n for n in valid if n <= count), default=None)
        above = min((n for n in valid if n >= count), default=None)
        assert rule.nearest_valid(count) == (below, above)


def test_nearest_valid_where_there_is_none():
    assert frame_rule("MiniMaxH3").nearest_valid(21) == (None, 22)
    assert frame_rule("VidTok").nearest_valid(8) == (None, None)
    assert frame_rule("KVAEVideo").nearest_valid(21) == (17, 25)
    assert frame_rule("CogVideoX").nearest_valid(16) == (9, 17)
    assert frame_rule("CogVideoX").nearest_valid(16, adapted=True) == (13, 17)
    model = TINY_VAES["HunyuanVideo"].build()
    model.tile_sample_stride_num_frames = 10
    assert frame_rule(model).nearest_valid(20) == (13, None)


@pytest.mark.parametrize("name", TINY_VAES)
def test_object_configuration_and_name_give_one_rule(name):
    tiny = TINY_VAES[name]
    model = tiny.build()
    rule = frame_rule(model)
    assert rule == frame_rule(tiny.config_dict()) and hash(rule) == hash(frame_rule(tiny.config_dict()))
    config = type(model.config)({**model.config, "_class_name": tiny.cls})
    assert type(config).__name__ == "FrozenDict" and frame_rule(config) == rule
    assert frame_rule(json.loads(json.dumps(tiny.config_dict()))) == rule
    assert frame_rule(rule) is rule
    assert rule.model == tiny.cls

    class Derived(type(model)):
        pass

    model.__class__ = Derived
    assert frame_rule(model) == rule


@pytest.mark.parametrize("cls", FAMILIES)
def test_a_name_stands_for_the_defaults_of_the_class(cls):
    rule = frame_rule(cls)
    assert rule == frame_rule({"_class_name": cls})
    assert rule == frame_rule(rule.name) == frame_rule(cls.lower())
    # Configurations that change nothing about time; LTX2's tell a ratio that the class does not assume.
    alike = [tiny for name, tiny in TINY_VAES.items() if tiny.cls == cls and not name.startswith("LTX")]
    for tiny in alike:
        assert frame_rule(tiny.build()) == rule
    assert alike or "LTX" in cls


def test_a_compiled_model_keeps_its_rule():
    model = TINY_VAES["Wan2.1"].build()
    assert frame_rule(torch.compile(model)) == frame_rule(model)


def test_attributes_come_before_the_configuration():
    model = TINY_VAES["CogVideoX"].build()
    rule = frame_rule(model)
    model.num_latent_frames_batch_size = 4
    assert frame_rule(model) != rule
    model.temporal_compression_ratio = 2
    assert frame_rule(model).temporal_compression_ratio == 2


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ("Nonsense", "the name 'Nonsense'"),
        ("", "the name ''"),
        ({"_class_name": "AutoencoderKL"}, "a configuration with _class_name 'AutoencoderKL'"),
        ({"in_channels": 3}, "a configuration with no _class_name (add it, or pass the model)"),
        ({"_class_name": ["AutoencoderKLWan"]}, "a configuration with _class_name ['AutoencoderKLWan']"),
        (torch.nn.Linear(1, 1), "an object of class Linear"),
        (None, "an object of class NoneType"),
        (17, "an object of class int"),
    ],
)
def test_unknown_things_are_named_and_so_are_the_known(thing, words):
    with pytest.raises(InvalidInput) as info:
        frame_rule(thing)
    assert words in str(info.value)
    assert all(cls in str(info.value) for cls in FAMILIES)


def test_a_model_s_bare_configuration_lacks_its_class():
    """`vae.config` names no class; with the name added it is enough."""
    vae = TINY_VAES["CogVideoX"].build()
    with pytest.raises(InvalidInput, match="no _class_name"):
        frame_rule(dict(vae.config))
    assert frame_rule({**vae.config, "_class_name": type(vae).__name__}) == frame_rule(vae)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "AutoencoderKLCogVideoX", "temporal_compression_ratio": "four"},
        {"_class_name": "AutoencoderKLWan", "dim_mult": 3},
        {"_class_name": "AutoencoderKLLTXVideo", "down_block_types": ()},
    ],
    ids=lambda config: config["_class_name"],
)
def test_a_setting_that_cannot_be_read_is_refused(config):
    with pytest.raises(InvalidInput, match="a setting of this AutoencoderKL"):
        frame_rule(config)


def test_diffusers_is_needed_for_defaults_only(monkeypatch):
    tiny = TINY_VAES["CogVideoX"]
    whole = {**tiny.config_dict(), "temporal_compression_ratio": 4}
    expected = frame_rule("CogVideoX")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert frame_rule(whole) == expected
    with pytest.raises(InvalidInput, match=r"temporal_compression_ratio.*needs diffusers.*pip install"):
        frame_rule("CogVideoX")


def test_a_class_that_this_diffusers_does_not_have_gets_a_sentence(monkeypatch):
    import diffusers

    monkeypatch.delitem(FAMILIES, "AutoencoderKLWan")
    monkeypatch.setitem(FAMILIES, "AutoencoderKLNew", lambda read: read("depth"))
    monkeypatch.setattr(diffusers, "AutoencoderKLNew", None, raising=False)
    with pytest.raises(InvalidInput, match=r"does not say its depth.*no default"):
        frame_rule("AutoencoderKLNew")
