"""`reconstruct`: what it writes, and every bad input by name."""

import json
import sys

import pytest
import torch

from causalvae_kernels.cli.reconstruct import OUTPUTS, check_size
from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.core.optional import EXTRAS
from tests.demo.display_matrix import TURNS, set_display_matrix

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:causalvae_kernels runs without its native CPU kernels")
pytest.importorskip("matplotlib")


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def no_plots(monkeypatch):
    """Return a function from which on no plot is drawn, which takes longer than all the rest."""

    def stop():
        module = sys.modules["causalvae_kernels.cli.reconstruct"]
        for name in ("plot_frames", "plot_stream"):
            monkeypatch.setattr(module, name, lambda path, *_: path.write_bytes(b"\x89PNG"))

    return stop


def test_reconstruct_writes_video_plot_and_report(run, clip, folder):
    threads = torch.get_num_threads()
    result = run("reconstruct", clip, "--frames", 9, "--repeats", 1, "--threads", 1)
    assert result.code == 0, result.stderr
    assert torch.get_num_threads() == threads
    assert files_in(folder) == sorted(["reconstruction", *(f"reconstruction/{name}" for name in OUTPUTS)])
    for words in (
        "MSE",
        "PSNR",
        "encode",
        "decode",
        "peak memory",
        "largest difference",
        "a VAE of 1.9 M parameters trained for this demo",
    ):
        assert words in result.stdout
    report = json.loads((folder / "reconstruction" / "report.json").read_text())
    assert report["setting"]["threads"] == 1
    assert report["num_frames_compared"] == 9
    assert report["largest_difference"] < 1e-3

    from causalvae_kernels.data.video import probe

    video = probe(folder / "reconstruction" / "side_by_side.mp4")
    assert video.num_frames == 9 and video.fps == 24


def test_size_start_weights_output_and_overwrite(run, clip, folder, tmp_path):
    from causalvae_kernels.demo.vae import small_random_vae

    small_random_vae(seed=2).save_pretrained(tmp_path / "model" / "vae")
    output = folder / "deep" / "out"
    output.mkdir(parents=True)
    (output / "frames.png").write_text("old")
    (output / "mine.txt").write_text("mine")
    result = run(
        *("reconstruct", clip, "--frames", 1, "--start", 11, "--size", "16x16", "--repeats", 1),
        *("--weights", tmp_path / "model", "--output", output, "--overwrite", "--dtype", "bfloat16"),
        *("--backend", "reference", "--precision", "exact"),
    )
    assert result.code == 0, result.stderr
    assert "trained for this demo" not in result.stdout
    report = json.loads((output / "report.json").read_text())
    setting = report["setting"]
    assert (setting["width"], setting["height"], setting["start"]) == (16, 16, 11)
    assert (setting["dtype"], setting["backend"], setting["precision"]) == ("bfloat16", "reference", "exact")
    assert "model" in setting["model"]
    assert (output / "frames.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "mine.txt").read_text() == "mine"


def test_a_clip_of_a_phone_is_upright(run, clip, folder, tmp_path, no_plots):
    """Width and height are as seen in what is printed, written and advised."""
    no_plots()
    turned = tmp_path / "phone.mp4"
    turned.write_bytes(clip.read_bytes())
    set_display_matrix(turned, TURNS["rotated by 90"][0])
    result = run("reconstruct", turned, "--frames", 1, "--repeats", 1)
    assert result.code == 0, result.stderr
    assert "16×24" in result.stdout
    setting = json.loads((folder / "reconstruction" / "report.json").read_text())["setting"]
    assert (setting["width"], setting["height"]) == (16, 24)
    assert "nearest is --size 16x24" in run("reconstruct", turned, "--size", "15x23", "--overwrite").stderr
    assert run("frames", turned, "--counts", "1", "--output", "out").code == 0
    assert json.loads((folder / "out" / "frames.json").read_text())["size"] == [24, 16]


def test_bad_frame_count_is_warned_of(run, clip, folder, no_plots):
    result = run("reconstruct", clip, "--frames", 5, "--repeats", 1)
    assert result.code == 0, result.stderr
    assert "5 frames went in and 8 came out" in result.stderr
    assert "nearest good counts: 1 and 9" in result.stderr
    assert 'with swap(vae, frames="any"): 5 frames come back' in result.stdout
    report = json.loads((folder / "reconstruction" / "report.json").read_text())
    assert len(report["any_mse_per_frame"]) == 5
    assert "AutoencoderKLCogVideoX: 0 modules" not in report["swap"]
    no_plots()
    assert run("reconstruct", clip, "--frames", 4, "--repeats", 1, "--overwrite").code == 0
    report = json.loads((folder / "reconstruction" / "report.json").read_text())
    assert report["num_frames_out"] == 1 and len(report["any_mse_per_frame"]) == 4
    assert run("reconstruct", clip, "--frames", 1, "--repeats", 1, "--overwrite").code == 0
    report = json.loads((folder / "reconstruction" / "report.json").read_text())
    assert report["any_mse_per_frame"] is None


def test_stream_writes_video_plot_and_report(run, clip, folder):
    """The whole clip, whose number of frames the model as shipped would not bring back."""
    result = run("reconstruct", clip, "--stream", "--threads", 1)
    assert result.code == 0, result.stderr
    assert files_in(folder) == sorted(["reconstruction", *(f"reconstruction/{name}" for name in OUTPUTS)])
    for words in (
        "12 frames of 24×16",
        "MSE, mean of frames",
        "PSNR of the worst",
        "a VAE of 1.9 M parameters trained for this demo",
    ):
        assert words in result.stdout
    report = json.loads((folder / "reconstruction" / "report.json").read_text())
    assert report["num_frames"] == report["num_frames_out"] == 12
    errors = report["swapped"]["mse_per_frame"]
    assert len(errors) == len(report["swapped"]["psnr_per_frame"]) == 12
    assert all(0 < error < 1 for error in errors)
    assert "takes any number of frames" in report["swap"] and report["warnings"] == []

    from causalvae_kernels.data.video import probe

    video = probe(folder / "reconstruction" / "side_by_side.mp4")
    assert video.num_frames == 12 and video.fps == 24 and video.width > 2 * 320
    assert (folder / "reconstruction" / "frames.png").read_bytes().startswith(b"\x89PNG")


def test_stream_of_a_part_of_a_clip_agrees_with_the_comparison_of_all(run, clip, folder, no_plots):
    """9 frames are one chunk: the numbers are those of the swapped side without --stream."""
    no_plots()
    options = ("--frames", 9, "--start", 2, "--size", "16x16")
    assert run("reconstruct", clip, *options, "--repeats", 1, "--output", "whole").code == 0
    assert run("reconstruct", clip, *options, "--stream", "--output", "stream").code == 0
    whole, stream = (json.loads((folder / name / "report.json").read_text()) for name in ("whole", "stream"))
    expected = whole["swapped"]["mse_per_frame"]
    assert stream["swapped"]["mse_per_frame"] == pytest.approx(expected, rel=1e-12)
    assert stream["setting"] == whole["setting"]


def test_stream_that_fails_half_way_leaves_nothing(run, clip, folder, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["causalvae_kernels.cli.reconstruct"], "plot_stream", fail)
    result = run("reconstruct", clip, "--stream", "--frames", 1)
    assert result.code == 1
    assert "error: [Errno 28] No space left on device" in result.stderr
    assert files_in(folder) == []


BAD_INPUT = {
    "stream of too few frames": (
        ["{clip}", "--stream", "--frames", "13"],
        "has 12 frames, expected at least 13 (13 frames, the first of them being frame 0)",
    ),
    "stream from behind the end": (
        ["{clip}", "--stream", "--start", "12"],
        "has 12 frames, expected at least 13 (1 frame, the first of them being frame 12)",
    ),
    "stream of no frame": (["{clip}", "--stream", "--frames", "0"], "--frames: got 0, expected at least 1"),
    "stream that times": (["{clip}", "--stream", "--repeats", "3"], "--repeats: got a number together with"),
    "no such file": (["missing.mp4"], "missing.mp4: no such file"),
    "a folder": (["."], "is a folder, expected a video file"),
    "too few frames": (["{clip}", "--frames", "13"], "has 12 frames, expected at least 13"),
    "too few frames after the start": (["{clip}", "--frames", "9", "--start", "4"], "expected at least 13"),
    "no frame": (["{clip}", "--frames", "0"], "--frames: got 0, expected at least 1"),
    "negative start": (["{clip}", "--start", "-1"], "--start: got -1, expected at least 0"),
    "no repeats": (["{clip}", "--repeats", "0"], "--repeats: got 0"),
    "no threads": (["{clip}", "--threads", "0"], "--threads: got 0"),
    "odd size": (
        ["{clip}", "--frames", "9", "--size", "21x13"],
        "expected multiples of 4; the nearest is --size 20x12",
    ),
    "size that is no size": (
        ["{clip}", "--size", "big"],
        "--size: got 'big', expected 2 positive numbers like",
    ),
    "unknown dtype": (["{clip}", "--dtype", "int8"], "--dtype: got 'int8', expected one of float32"),
    "unknown device": (["{clip}", "--device", "abacus"], "--device: got 'abacus'"),
    "device of another kind": (["{clip}", "--device", "meta"], "--device: got 'meta', expected cpu, cuda"),
    "GPU that is not there": (["{clip}", "--device", "cuda:99"], "--device: got 'cuda:99'"),
    "unknown backend": (["{clip}", "--backend", "abacus"], "--backend: got 'abacus', expected one of auto"),
    "unknown precision": (
        ["{clip}", "--precision", "sloppy"],
        "--precision: got 'sloppy', expected one of exact",
    ),
    "no weights": (["{clip}", "--weights", "nowhere"], "weights nowhere: no such folder"),
    "output that is a file": (["{clip}", "--output", "{clip}"], "is a file, expected a folder"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(refuse, clip, folder, case):
    arguments, sentence = BAD_INPUT[case]
    assert sentence in refuse("reconstruct", *(argument.format(clip=clip) for argument in arguments))
    assert files_in(folder) == []


def test_not_a_video(refuse, folder):
    (folder / "text.mp4").write_text("no video")
    assert "text.mp4: cannot be read as a video" in refuse("reconstruct", "text.mp4")
    assert files_in(folder) == ["text.mp4"]


def test_clip_of_an_odd_size(refuse, folder):
    from causalvae_kernels.data.video import write_video

    write_video(folder / "odd.mp4", torch.zeros(9, 18, 30, 3, dtype=torch.uint8), 24)
    sentence = refuse("reconstruct", "odd.mp4", "--frames", "9")
    assert "the clip's frames are 30x18, expected multiples of 4; the nearest is --size 28x16" in sentence
    assert files_in(folder) == ["odd.mp4"]


def test_output_that_exists(refuse, clip, folder):
    (folder / "out").mkdir()
    (folder / "out" / "report.json").write_text("old")
    sentence = refuse("reconstruct", clip, "--output", "out")
    assert "already holds report.json" in sentence and "--overwrite" in sentence
    assert files_in(folder) == ["out", "out/report.json"]
    assert (folder / "out" / "report.json").read_text() == "old"


def test_weights_that_do_not_fit(refuse, clip, folder):
    from causalvae_kernels.demo.vae import small_random_vae

    small_random_vae().save_pretrained(folder / "weights")
    config = json.loads((folder / "weights" / "config.json").read_text())
    (folder / "weights" / "config.json").write_text(json.dumps({**config, "latent_channels": 4}))
    assert "weights weights" in refuse("reconstruct", clip, "--weights", "weights")
    assert not (folder / "reconstruction").exists()


@pytest.mark.parametrize("module", ["av", "matplotlib", "PIL", "diffusers"])
def test_missing_package(refuse, clip, folder, monkeypatch, module):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Hidden(module), *sys.meta_path])
    sentence = refuse("reconstruct", clip)
    assert (
        f"needs the package {module!r}" in sentence and f"'causalvae-kernels[{EXTRAS[module]}]'" in sentence
    )
    assert files_in(folder) == []


class _Hidden:
    """Makes a package look as if it were not installed."""

    def __init__(self, name):
        self.name = name

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def test_failure_half_way_leaves_nothing(run, clip, folder, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["causalvae_kernels.cli.reconstruct"], "plot_frames", fail)
    result = run("reconstruct", clip, "--frames", 1, "--repeats", 1)
    assert result.code == 1
    assert "error: [Errno 28] No space left on device" in result.stderr
    assert files_in(folder) == []


@pytest.mark.parametrize(
    ("wanted", "actual", "near"),
    [
        ((21, 13), (640, 480), "24x16"),
        ((20, 12), (640, 480), "16x8"),
        ((3, 3), (640, 480), "8x8"),
        (None, (646, 271), "640x264"),
        (None, (5, 16), "8x16"),
    ],
)
def test_nearest_size(wanted, actual, near):
    with pytest.raises(InvalidInput, match=f"the nearest is --size {near}$"):
        check_size(wanted, actual, 8)
    check_size(tuple(int(part) for part in near.split("x")), actual, 8)
