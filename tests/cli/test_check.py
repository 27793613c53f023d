"""`check`: one row per file, an exit code, and the list of what can be used."""

import json

import pytest

from tests.support.video_files import make_folder

pytest.importorskip("av")
pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "clips"
    return folder, make_folder(folder)


def test_json_has_a_row_per_file(run, collection):
    folder, expected = collection
    result = run("check", folder, "--family", "cogvideox", "--json")
    assert result.code == 1, result.stderr
    facts = json.loads(result.stdout)
    rows = {row["source"]: row for row in facts["clips"]}
    assert facts["size_unit"] == 8 and list(rows) == sorted(expected)
    for source, sizes in expected.items():
        assert (rows[source]["reason"] is not None) == (sizes is None)
        if sizes:
            assert (rows[source]["frames"], rows[source]["width"], rows[source]["height"]) == sizes
    assert rows["plain.mp4"]["verdict"] == "fine" and not rows["plain.mp4"]["harmed"]
    assert rows["below/sound.mp4"]["policies"]["trim"] == {"frames": 9, "run_frames": 9, "latents": 3}
    assert not rows["odd.mkv"]["size_fits"] and rows["odd.mkv"]["harmed"]
    assert facts["harmed"] == 3 + 3  # broken; sound, odd and varies


def test_table_and_exit_codes(run, collection, tmp_path):
    folder, _ = collection
    result = run("check", folder, "--family", "cogvideox")
    assert result.code == 1
    assert "spoils the first frames" in result.stdout and "broken:" in result.stdout
    assert "9 clips, 3 fine, 3 harmed, 3 broken" in result.stdout
    fine = run("check", folder / "plain.mp4", folder / "turned.mp4", "--family", "CogVideoX")
    assert fine.code == 0 and "2 clips, 2 fine" in fine.stdout


def test_the_configuration_of_a_folder_is_enough(run, collection, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    result = run("check", collection[0] / "below", "--weights", tmp_path, "--json")
    assert json.loads(result.stdout)["clips"][0]["verdict"] == "drops the last 3"


def test_select_writes_what_a_policy_can_use(run, collection, folder):
    clips, _ = collection
    assert run("check", clips, "--family", "cogvideox", "--select", "trim", "--json").code == 1
    rows = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
    used = {row["path"].removeprefix(f"{clips}/"): row["frames"] for row in rows}
    assert used == {"below/sound.mp4": 9, "one.mp4": 1, "plain.mp4": 9, "turned.mp4": 17, "varies.mkv": 9}
    run("check", clips, "--family", "cogvideox", "--select", "valid", "--output", folder / "b.jsonl")
    assert len((folder / "b.jsonl").read_text().splitlines()) == 3


def test_bad_input_is_one_sentence(refuse, collection, folder):
    clips, _ = collection
    assert "--family NAME or --weights FOLDER" in refuse("check", clips)
    assert "--family: got 'nobody'" in refuse("check", clips, "--family", "nobody")
    assert "no such file" in refuse("check", "none.mp4", "--family", "wan")
    assert "--select: got 'all'" in refuse("check", clips, "--family", "wan", "--select", "all")
    assert "without --select" in refuse("check", clips, "--family", "wan", "--output", "a.jsonl")
    assert "no folder" in refuse(
        "check", clips, "--family", "wan", "--select", "any", "--output", "no/a.jsonl"
    )
