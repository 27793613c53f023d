"""A tiny clip, and the command line in this process."""

from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from causalvae_kernels.cli import app


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The pictures are so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run():
    """Run the command line; result.output holds stdout and stderr."""
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})

    def call(*arguments):
        result = runner.invoke(app, [str(argument) for argument in arguments])
        return SimpleNamespace(
            code=result.exit_code, stdout=result.stdout, stderr=result.stderr, exception=result.exception
        )

    return call


@pytest.fixture
def refuse(run):
    """Run the command line and require exit code 2 and one sentence; return the sentence."""

    def call(*arguments):
        result = run(*arguments)
        assert result.code == 2, (result.stdout, result.stderr, result.exception)
        assert result.stdout == ""
        lines = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
        assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
        return lines[0]

    return call


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A clip of 12 frames of 24×16."""
    pytest.importorskip("av")
    from causalvae_kernels.data.video import write_video

    path = tmp_path_factory.mktemp("clip") / "tiny.mp4"
    time = torch.arange(12).view(-1, 1, 1, 1) / 12
    rows, columns = torch.linspace(0, 1, 16).view(1, -1, 1, 1), torch.linspace(0, 1, 24).view(1, 1, -1, 1)
    write_video(path, ((rows + columns + time).expand(12, 16, 24, 3) / 3 * 255).to(torch.uint8), 24)
    return path
