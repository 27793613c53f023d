"""What is encoded, and that its bits depend on the clip and the settings alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.data import shards
from causalvae_kernels.data.manifest import Folder
from causalvae_kernels.data.video import fit
from causalvae_kernels.models.loading import load_vae
from causalvae_kernels.workloads import small_cogvideox_config
from tests.support.datasets import SHARDS, encode, files_of, torchrun
from tests.support.video_files import decoded, make_video

pytest.importorskip("av")
pytest.importorskip("diffusers")
safetensors_torch = pytest.importorskip("safetensors.torch")


def manifest_of(folder):
    rows = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    return {row["source"]: row for row in rows}


def moments_of(folder, row):
    tensors = safetensors_torch.load_file(folder / row["shard"])
    return tensors[f"{row['key']}.mean"], tensors.get(f"{row['key']}.logvar")


def reference(weights, pixels, **options):
    """What the swapped VAE makes of frames (T, H, W, 3) in one call."""
    video = pixels.permute(3, 0, 1, 2).unsqueeze(0).contiguous().float() / 127.5 - 1
    vae = load_vae(weights)
    with torch.no_grad(), swap(vae, frames="any"):
        return vae.encode(video, **options).latent_dist


def test_every_clip_has_the_latents_of_one_call(weights, mixed, tmp_path):
    out = tmp_path / "out"
    result = encode(mixed, "--weights", weights, "--output", out, *SHARDS)
    rows = manifest_of(out)
    assert {name for name, row in rows.items() if "error" in row} == {"cut.mp4", "empty.mp4", "text.mp4"}
    assert "3 broken" in result.stdout and "broken: text.mp4" in result.stderr
    assert len(rows) == 9 and not (out / "parts").exists()
    for source, turn in (("plain.mp4", None), ("turned.mp4", (1, 2)), ("below/sound.mp4", None)):
        row, pixels = rows[source], decoded(mixed / source)
        if turn:
            pixels = torch.rot90(pixels, -1, turn)
        expected = reference(weights, pixels)
        mean, logvar = moments_of(out, row)
        assert torch.equal(mean, expected.mean[0]) and torch.equal(logvar, expected.logvar[0])
        assert row["num_frames"] == len(pixels) and (row["height"], row["width"]) == pixels.shape[1:3]
        assert row["latents"] == list(mean.shape) and row["fps"] == "24"
    assert rows["odd.mkv"]["width"] == 32 and rows["odd.mkv"]["height"] == 24
    centre = decoded(mixed / "odd.mkv")[:, :24, :32]  # one pixel is left over below and to the right
    assert torch.equal(moments_of(out, rows["odd.mkv"])[0], reference(weights, centre).mean[0])


@pytest.mark.parametrize(
    ("options", "index"),
    [
        (["--frames", "5"], range(5)),
        (["--stride", "3"], range(0, 13, 3)),
        (["--stride", "2", "--frames", "4"], range(0, 8, 2)),
        (["--fps", "12"], [0, 2, 4, 6, 8, 10, 12]),
        (["--fps", "48", "--frames", "5"], [0, 0, 1, 1, 2]),
        (["--policy", "trim"], range(9)),
        (["--policy", "pad"], [*range(13), 12, 12, 12, 12]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and isinstance(value[0], str) else "",
)
def test_sampling(weights, clips, tmp_path, options, index):
    out, path = tmp_path / "out", clips / "2.mp4"
    encode(path, "--weights", weights, "--output", out, "--mode", *options)
    (row,) = manifest_of(out).values()
    pixels = decoded(path)[list(index)]
    kept = 13 if "pad" in options else len(pixels)
    assert row["num_frames"] == kept
    mean, logvar = moments_of(out, row)
    assert logvar is None and torch.equal(mean, reference(weights, pixels, num_frames=kept).mean[0])


def test_a_varying_rate_is_sampled_by_time(weights, tmp_path):
    times = [0, 40, 50, 60, 200, 240]
    path = make_video(tmp_path / "v.mkv", 6, (24, 16), times=times)
    encode(path, "--weights", weights, "--output", tmp_path / "out", "--fps", "20", "--frames", "5")
    (row,) = manifest_of(tmp_path / "out").values()
    # seen at 0, 50, 100, 150 and 200 ms
    expected = reference(weights, decoded(path)[[0, 2, 3, 3, 4]])
    assert torch.equal(moments_of(tmp_path / "out", row)[0], expected.mean[0]) and row["fps"] == "20"


def test_size_crops_and_resizes_as_fit(weights, clips, tmp_path):
    encode(clips / "1.mp4", "--weights", weights, "--output", tmp_path / "out", "--size", "16x8")
    (row,) = manifest_of(tmp_path / "out").values()
    pixels = torch.stack([fit(frame, 16, 8) for frame in decoded(clips / "1.mp4")])
    assert torch.equal(moments_of(tmp_path / "out", row)[0], reference(weights, pixels).mean[0])


def test_dtypes(weights, clips, tmp_path):
    options = ("--dtype", "bfloat16", "--save-dtype", "float16")
    encode(clips / "1.mp4", "--weights", weights, "--output", tmp_path / "out", *options)
    (row,) = manifest_of(tmp_path / "out").values()
    vae = load_vae(weights, torch.bfloat16)
    video = decoded(clips / "1.mp4").permute(3, 0, 1, 2).unsqueeze(0).contiguous().float() / 127.5 - 1
    with torch.no_grad(), swap(vae, frames="any"):
        expected = vae.encode(video.bfloat16()).latent_dist.mean[0].half()
    mean, _ = moments_of(tmp_path / "out", row)
    assert mean.dtype == torch.float16 and torch.equal(mean, expected)
    assert (row["dtype"], row["saved_dtype"]) == ("bfloat16", "float16")


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize("moment", [1, 3, 7, 8, 10])  # dataset.json, parts, shards, manifest
def test_stopped_at_any_write_and_resumed_it_has_the_same_bytes(
    weights, clips, tmp_path, monkeypatch, moment
):
    arguments = (clips, "--weights", weights, *SHARDS, "--output")
    encode(*arguments, tmp_path / "whole")
    count, own = 0, os.replace

    def replace(*paths):
        nonlocal count
        count += 1
        if count == moment:
            raise Killed
        own(*paths)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", replace)
        # What the temporary file's owner would remove, a killed process leaves.
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        encode(*arguments, tmp_path / "parts", code=None)
    encode(*arguments, tmp_path / "parts")
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_a_shard_is_on_the_disk_before_it_has_its_name(weights, clips, tmp_path, monkeypatch):
    synced, named = set(), []
    own = os.replace

    def replace(old, new):
        named.append((Path(new).relative_to(tmp_path / "out"), os.stat(old).st_ino in synced))
        own(old, new)

    monkeypatch.setattr(os, "fsync", lambda number: synced.add(os.fstat(number).st_ino))
    monkeypatch.setattr(os, "replace", replace)
    encode(clips, "--weights", weights, *SHARDS, "--output", tmp_path / "out")
    assert len(named) == 1 + 5 + 3 + 1
    assert {str(name): done for name, done in named if name.parts[0] != "parts"} == {
        "dataset.json": True,
        **{f"shard-0000{index}.safetensors": True for index in range(3)},
        "manifest.jsonl": True,
    }


def test_half_a_part_is_done_again(weights, clips, tmp_path, monkeypatch):
    arguments = (clips, "--weights", weights, *SHARDS, "--output")
    encode(*arguments, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Folder, "assemble", lambda *_: (_ for _ in ()).throw(Killed))
        encode(*arguments, tmp_path / "parts", code=None)
    part = next((tmp_path / "parts" / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    encode(*arguments, tmp_path / "parts")
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_only_what_changed_is_done_again(weights, clips, tmp_path):
    arguments = (clips, "--weights", weights, *SHARDS, "--output", tmp_path / "out")
    encode(*arguments)
    before = files_of(tmp_path / "out")
    assert "encoded 0 clips" in encode(*arguments).stdout
    assert files_of(tmp_path / "out") == before
    make_video(clips / "3.mp4", 5, (24, 16), seed=9)
    (clips / "0.mp4").touch()
    assert "encoded 1 clips" in encode(*arguments).stdout
    after = files_of(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {
        "shard-00001.safetensors",
        "manifest.jsonl",
    }
    make_video(clips / "new.mp4", 1, (24, 16))
    assert "encoded 1 clips" in encode(*arguments).stdout
    assert manifest_of(tmp_path / "out")["new.mp4"]["shard"] == "shard-00003.safetensors"
    encode(clips, "--weights", weights, *SHARDS, "--output", tmp_path / "fresh")
    row, fresh = (manifest_of(tmp_path / name)["3.mp4"] for name in ("out", "fresh"))
    assert torch.equal(moments_of(tmp_path / "out", row)[0], moments_of(tmp_path / "fresh", fresh)[0])


def test_broken_clips_are_tried_again_on_demand_or_when_they_change(weights, clips, tmp_path):
    arguments = (clips, "--weights", weights, "--output", tmp_path / "out")
    whole = (clips / "1.mp4").read_bytes()
    (clips / "1.mp4").write_bytes(whole[:200])
    assert "1 broken" in encode(*arguments).stdout
    assert "5 were there" in encode(*arguments).stdout
    assert "1 broken" in encode(*arguments, "--retry").stdout
    (clips / "1.mp4").write_bytes(whole)
    assert "encoded 1 clips" in encode(*arguments).stdout
    assert "error" not in manifest_of(tmp_path / "out")["1.mp4"]
    (clips / "1.mp4").write_bytes(whole[:200])
    assert "--strict" in encode(*arguments, "--strict", code=2).stderr


def test_other_settings_are_refused(weights, clips, tmp_path):
    arguments = (clips, "--weights", weights, "--output", tmp_path / "out")
    encode(*arguments)
    before = files_of(tmp_path / "out")
    assert "with frames None, got 5" in encode(*arguments, "--frames", "5", code=2).stderr
    other = tmp_path / "other"
    vae = load_vae(weights)
    with torch.no_grad():
        vae.encoder.conv_in.conv.bias[0] += 1
    vae.save_pretrained(other)
    refused = encode(clips, "--weights", other, "--output", tmp_path / "out", code=2).stderr
    assert "other weights or another configuration" in refused
    assert "holds other files" in encode(clips, "--weights", weights, "--output", clips, code=2).stderr
    assert files_of(tmp_path / "out") == before


def test_two_runs_do_not_write_into_one_folder(weights, clips, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = encode(clips, "--weights", weights, "--output", tmp_path / "out", code=2)
    assert "another run is writing there" in refused.stderr


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
from causalvae_kernels.cli import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_ends_with_a_sentence_and_nothing_half_written(weights, clips, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", FULL, "encode", clips, "--weights", weights, "--output", out]
    done = subprocess.run([*map(str, command), "--threads", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and "too large" in done.stderr
    left = files_of(out)
    assert not [name for name in left if ".partial" in name or name.startswith("shard")]
    for name in left:
        if name.startswith("parts/"):
            shards.read_entries(out / name)
    encode(clips, "--weights", weights, "--output", out)
    encode(clips, "--weights", weights, "--output", tmp_path / "whole")
    assert files_of(out) == files_of(tmp_path / "whole")


def test_too_little_memory_is_tried_in_tiles(clips, tmp_path, monkeypatch):
    from diffusers import AutoencoderKLCogVideoX as Model

    make_video(clips / "large.mp4", 5, (96, 64))
    path, own = clips / "large.mp4", Model.encode
    folder = tmp_path / "vae"  # whose tiles are smaller than the clip
    Model(**small_cogvideox_config(), sample_height=96, sample_width=80).save_pretrained(folder)

    def encode_small(self, x, *args, **kwargs):
        if not self.use_tiling and type(x) is torch.Tensor:  # not of a plan
            raise torch.OutOfMemoryError("no memory for one piece")
        return own(self, x, *args, **kwargs)

    monkeypatch.setattr(Model, "encode", encode_small)
    vae = load_vae(folder)
    vae.enable_tiling()
    with torch.no_grad(), swap(vae, frames="any"):
        video = decoded(path).permute(3, 0, 1, 2).unsqueeze(0).contiguous().float() / 127.5 - 1
        expected = vae.encode(video).latent_dist.mean[0]
    result = encode(path, "--weights", folder, "--output", tmp_path / "out")
    assert "1 in tiles" in result.stdout, result.stderr
    (row,) = manifest_of(tmp_path / "out").values()
    assert row["tiled"] and torch.equal(moments_of(tmp_path / "out", row)[0], expected)


def test_a_limit_of_memory_decides_by_the_plan(weights, clips, tmp_path):
    path = make_video(clips / "large.mp4", 5, (96, 64))
    result = encode(path, "--weights", weights, "--output", tmp_path / "out", "--memory-mib", "1")
    assert "MiB in one piece" in result.stderr and "1 MiB may be taken" in result.stderr
    encode(path, "--weights", weights, "--output", tmp_path / "more", "--memory-mib", "4000")
    assert not manifest_of(tmp_path / "more")["large.mp4"]["tiled"]


def test_verify_sees_other_bits(weights, clips, tmp_path):
    arguments = (clips, "--weights", weights, "--output", tmp_path / "out", "--clips-per-shard", "1")
    result = encode(*arguments, "--verify", "9")
    assert result.stdout.count("the same bits, decoded: ") == 5
    folder = Folder.read(tmp_path / "out")
    (entry,) = shards.read_entries(folder.shard_path(2))
    tensors = folder.tensors(entry)
    tensors["mean"][0, 0, 0, 0] += 1e-3
    shards.write_shard(folder.shard_path(2), [entry], lambda _: tensors)
    result = encode(*arguments, "--verify", "9", code=1)
    assert "verified 2.mp4: OTHER BITS" in result.stdout and result.stdout.count("the same bits") == 4


def test_bad_input_is_refused_before_any_work(weights, clips, tmp_path):
    out = tmp_path / "out"
    for options, words in (
        (("--fps", "0"), "--fps: got '0'"),
        (("--stride", "0"), "--stride: got 0"),
        (("--policy", "valid"), "--policy: got 'valid'"),
        (("--size", "20x16"), "--size: got 20x16, expected multiples of 8"),
        (("--format", "webdataset", "--save-dtype", "bfloat16"), "no bfloat16"),
        (("--format", "zip"), "--format: got 'zip'"),
    ):
        assert words in encode(clips, "--weights", weights, "--output", out, *options, code=2).stderr
    assert "no such folder" in encode(clips, "--weights", "none", "--output", out, code=2).stderr
    (tmp_path / "config.json").write_text("{}")
    assert "describes None" in encode(clips, "--weights", tmp_path, "--output", out, code=2).stderr
    assert not out.exists()


def test_webdataset_reads_its_shards(weights, clips, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    for name in ("broken.mp4", "damaged.mp4", "empty.mp4"):  # the last shard holds nothing else
        (clips / name).write_bytes(b"")
    arguments = (clips, "--weights", weights, *SHARDS, "--output")
    encode(*arguments, tmp_path / "tar", "--format", "webdataset")
    encode(*arguments, tmp_path / "safe")
    files = [str(path) for path in sorted((tmp_path / "tar").glob("*.tar"))]
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode())
    rows = manifest_of(tmp_path / "safe")
    assert [sample["json"]["source"] for sample in samples] == [f"{i}.mp4" for i in range(5)]
    for sample in samples:
        row = rows[sample["json"]["source"]]
        mean, logvar = moments_of(tmp_path / "safe", row)
        assert torch.equal(torch.from_numpy(sample["mean.npy"]), mean)
        assert torch.equal(torch.from_numpy(sample["logvar.npy"]), logvar)
        assert sample["json"]["num_frames"] == row["num_frames"]
    assert "encoded 0 clips" in encode(*arguments, tmp_path / "tar", "--format", "webdataset").stdout


# The second process kills itself while it encodes its first clip; the first one has one clip done by then.
KILL = """
import os, signal, time
from causalvae_kernels.data.posterior import ClipCoder
own, done = ClipCoder.encode, []
def encode(self, pixels):
    if os.environ["RANK"] == "1":
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    if done:
        time.sleep(600)
    done.append(1)
    return own(self, pixels)
ClipCoder.encode = encode
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kills a process")
def test_processes_share_the_work_and_one_that_is_killed_loses_nothing(weights, clips, tmp_path):
    arguments = (clips, "--weights", weights, *SHARDS, "--output")
    killed = torchrun(2, *arguments, tmp_path / "many", code=KILL)
    killed.communicate(timeout=250)
    assert killed.returncode != 0
    assert not list((tmp_path / "many").glob("shard-*"))
    done = torchrun(3, *arguments, tmp_path / "many")
    out, err = done.communicate(timeout=250)
    assert done.returncode == 0, err
    assert out.count("encoded ") == 1 and out.count("written: ") == 1
    encode(*arguments, tmp_path / "one")
    assert files_of(tmp_path / "many") == files_of(tmp_path / "one")
