"""README, guide and community files: what they link to is there, and what they promise is in the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import causalvae_kernels
from causalvae_kernels.cli import app
from causalvae_kernels.core.env import BACKEND, TABLE
from causalvae_kernels.temporal.model_rules import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
if not README.exists():
    pytest.skip("the sources of the package are not here", allow_module_level=True)

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")})
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.S | re.M)
# Pages that the site generates from the code.
_GENERATED = ("docs/reference/command-line.md", "docs/reference/environment.md")


def _anchors(text: str) -> set[str]:
    """Return what the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if str(found.relative_to(ROOT)) in _GENERATED:
            continue
        assert found.exists(), f"{target} is not there"
        if anchor and found.suffix == ".md":
            assert anchor in _anchors(found.read_text(encoding="utf-8")), f"{target}: no such heading"


def test_the_readme_is_short_and_names_what_there_is():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert f"for {len(FAMILIES)} classes of diffusers" in text
    for command in ("make demo", "make test"):
        assert command in text


def test_every_backend_is_documented():
    text = (ROOT / "docs/reference/ops.md").read_text(encoding="utf-8")
    for name in BACKEND.choices:
        assert f"`{name}`" in text


def test_the_readme_s_code_runs(monkeypatch, capsys):
    """The examples of use and of frame counts, on a small model; planning a large clip takes too long."""
    diffusers = pytest.importorskip("diffusers")
    from tests.support.wan_models import build

    monkeypatch.setattr(diffusers.AutoencoderKLWan, "from_pretrained", lambda *_, **__: build("2.1"))
    use, counts, memory = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    names = {}
    exec(compile(use.replace("17, 96, 144", "6, 16, 16"), "README.md", "exec"), names)
    assert names["frames"].shape[2] == 5, "as shipped, Wan drops the tail of 6 frames"
    assert "modules replaced" in capsys.readouterr().out
    exec(compile(counts, "README.md", "exec"), names)
    assert names["frames"].shape == names["video"].shape
    compile(memory, "README.md", "exec")


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs", reason="needs causalvae-kernels[docs]")
    pytest.importorskip("mkdocstrings", reason="needs causalvae-kernels[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, words in (
        ("command-line", [command.callback.__name__ for command in app.registered_commands]),
        ("environment", [variable.name for variable in TABLE]),
        ("api", causalvae_kernels.__all__),
    ):
        page = (tmp_path / "reference" / name / "index.html").read_text(encoding="utf-8")
        assert [word for word in words if word not in page] == []
