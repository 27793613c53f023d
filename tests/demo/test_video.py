"""Video files: what is written is read back; what is no video is refused in a sentence."""

from fractions import Fraction

import pytest
import torch

from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.data.video import fit, iter_frames, probe, read_frames, write_video
from tests.demo.display_matrix import TURNS, set_display_matrix

av = pytest.importorskip("av")


def moving_picture(num_frames=6, height=32, width=48):
    """Smooth frames (T, H, W, 3) that differ from each other by much more than the codec loses."""
    y = torch.linspace(0, 1, height).view(1, height, 1, 1)
    x = torch.linspace(0, 1, width).view(1, 1, width, 1)
    t = torch.arange(num_frames).view(-1, 1, 1, 1) / max(num_frames - 1, 1)
    colour = torch.tensor([1.0, 0.7, 0.4])
    return ((0.3 * x + 0.3 * y + 0.4 * t) * colour * 255).round().to(torch.uint8)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_picture(), 24)
    return path


def test_round_trip(clip):
    frames, fps = read_frames(clip, 6)
    assert frames.dtype == torch.uint8 and frames.shape == (6, 32, 48, 3)
    assert fps == 24
    # a few levels: chroma is stored at half the resolution; wrong order of frames or colours costs > 20
    assert (frames.int() - moving_picture().int()).abs().float().mean() < 4


def test_probe(clip):
    info = probe(clip)
    assert (info.width, info.height, info.num_frames) == (48, 32, 6)
    assert info.fps == Fraction(24)


def test_part_of_a_clip(clip):
    whole, _ = read_frames(clip, 6)
    part, _ = read_frames(clip, 2, start=3)
    assert torch.equal(part, whole[3:5])


def test_frames_come_from_any_iterable(tmp_path):
    write_video(tmp_path / "a.mp4", iter(moving_picture()), Fraction(30000, 1001))
    frames, fps = read_frames(tmp_path / "a.mp4", 6)
    assert len(frames) == 6 and fps == Fraction(30000, 1001)


def test_size_crops_to_the_shape_and_resizes(clip):
    frames, _ = read_frames(clip, 1, size=(16, 16))
    assert frames.shape == (1, 16, 16, 3)
    whole, _ = read_frames(clip, 1)
    middle = whole[0, :, 8:40]  # 32×32 of 48×32
    mean_of_2x2 = middle.view(16, 2, 16, 2, 3).float().mean((1, 3))
    assert (frames[0].float() - mean_of_2x2).abs().mean() < 3


def test_fit_of_the_right_shape_only_cuts():
    frame = moving_picture(1)[0]
    assert torch.equal(fit(frame, 32, 32), frame[:, 8:40])


def test_fit_makes_larger():
    assert fit(moving_picture(1)[0], 64, 96).shape == (96, 64, 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_frames": 7}, "has 6 frames, expected at least 7"),
        ({"num_frames": 2, "start": 5}, "has 6 frames, expected at least 7"),
        ({"num_frames": 0}, "number of frames: got 0"),
        ({"num_frames": 1, "start": -1}, "first frame: got -1"),
        ({"num_frames": 1, "size": (0, 8)}, "size: got 0x8"),
    ],
)
def test_wrong_part(clip, arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        read_frames(clip, **arguments)


def test_no_such_file(tmp_path):
    with pytest.raises(InvalidInput, match="no such file"):
        probe(tmp_path / "missing.mp4")


def test_folder_is_no_video(tmp_path):
    with pytest.raises(InvalidInput, match="is a folder"):
        probe(tmp_path)


@pytest.mark.parametrize("content", [b"", b"just a text, no video at all\n" * 20])
def test_not_a_video(tmp_path, content):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="cannot be read as a video"):
        read_frames(path, 1)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InvalidInput, match="holds no video"):
        probe(path)


def test_cut_off_file_is_refused(clip):
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidInput):
        read_frames(clip, 6)


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        (moving_picture(1, 31, 48), "even width and height"),
        (moving_picture(1, 32, 47), "even width and height"),
        (moving_picture(0), "got no frame"),
        ([moving_picture(1)[0], moving_picture(1, 16, 16)[0]], "expected torch.uint8"),
        (moving_picture(1).float(), "expected torch.uint8"),
    ],
)
def test_frames_that_cannot_be_written_leave_nothing(tmp_path, frames, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        write_video(tmp_path / "a.mp4", frames, 24)
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_old_file(clip):
    before = clip.read_bytes()

    def frames():
        yield moving_picture(1)[0]
        raise KeyError("stopped")

    with pytest.raises(KeyError):
        write_video(clip, frames(), 24)
    assert clip.read_bytes() == before
    assert list(clip.parent.iterdir()) == [clip]


def test_name_and_folder_of_the_output(tmp_path):
    with pytest.raises(InvalidInput, match=r"expected '\.mp4'"):
        write_video(tmp_path / "a.avi", moving_picture(1), 24)
    with pytest.raises(InvalidInput, match="does not exist"):
        write_video(tmp_path / "no" / "a.mp4", moving_picture(1), 24)


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_upright(clip, turn):
    """Quarter turns and mirror images; phones write the first, some front cameras the second."""
    stored, _ = read_frames(clip, 6)
    matrix, as_seen = TURNS[turn]
    set_display_matrix(clip, matrix)
    expected = as_seen(stored)
    frames, _ = read_frames(clip, 6)
    assert torch.equal(frames, expected) and frames.is_contiguous()
    info = probe(clip)
    assert (info.height, info.width) == expected.shape[1:3]
    small, _ = read_frames(clip, 1, size=(10, 14))
    assert torch.equal(small[0], fit(expected[0], 10, 14))
    assert torch.equal(torch.stack(list(iter_frames(clip, start=2))), expected[2:])


def test_a_crooked_picture_takes_the_nearest_quarter_turn(clip):
    stored, _ = read_frames(clip, 1)
    set_display_matrix(clip, (0.17, 0.98, -0.98, 0.17))
    assert torch.equal(read_frames(clip, 1)[0], TURNS["rotated by 90"][1](stored))
