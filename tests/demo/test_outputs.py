"""Output files are there whole or not at all."""

import os
import stat

import pytest

from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.core.outputs import check_outputs, staged_outputs, written_whole

NAMES = ("a.txt", "b.txt")


def test_written_whole(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".txt"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_others_may_read_the_file(tmp_path):
    old = os.umask(0o022)
    try:
        with written_whole(tmp_path / "a.txt"):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def test_exception_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_staged_outputs_appear_together(tmp_path):
    folder = tmp_path / "deep" / "out"
    with staged_outputs(folder, NAMES) as paths:
        for path in paths.values():
            path.write_text("new")
        assert not any((folder / name).exists() for name in NAMES)
    assert sorted(path.name for path in folder.iterdir()) == list(NAMES)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_failure_leaves_no_folder(tmp_path, error):
    with pytest.raises(error), staged_outputs(tmp_path / "deep" / "out", NAMES) as paths:
        paths["a.txt"].write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_a_folder_that_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyError), staged_outputs(tmp_path, NAMES, overwrite=True) as paths:
        paths["a.txt"].write_text("half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_existing_file_is_refused_unless_overwritten(tmp_path):
    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(InvalidInput, match=r"already holds b\.txt.*--overwrite"):
        check_outputs(tmp_path, NAMES, overwrite=False)
    check_outputs(tmp_path, NAMES, overwrite=True)


def test_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput, match="is a file, expected a folder"):
            check_outputs(folder, NAMES, overwrite=True)


def test_output_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InvalidInput, match="is a folder, expected a file"):
        check_outputs(tmp_path, NAMES, overwrite=True)
