"""Output files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import InvalidInput

PARTIAL = ".partial-"
"""How the names of files begin that are not finished."""


@contextmanager
def written_whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`, and renames it to `path` at the end.

    An exception removes the temporary file and leaves whatever was at `path` untouched.

    Args:
        path: The final file. Its folder must exist.
        durable: Whether the content is on the disk before the file has its name, so that not even a power
            failure leaves half of it under that name.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=PARTIAL, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only the owner may read; an output gets the usual permissions.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        if durable:
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_outputs(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """Refuses an output folder that cannot be used; leaves nothing behind.

    Args:
        folder: Where the files will be; it need not exist.
        names: Their names.
        overwrite: Whether files of these names may be replaced.

    Raises:
        InvalidInput: If the folder is a file, cannot be made or is not writable, or holds one of the files.
    """
    try:
        folder.exists()  # fails for a name that is too long
        existing = [name for name in names if (folder / name).exists()]
        folders = [name for name in existing if (folder / name).is_dir()]
    except OSError as error:
        raise InvalidInput(f"output {folder}: cannot be used ({error.strerror})") from error
    if folders:
        raise InvalidInput(f"output {folder / folders[0]} is a folder, expected a file or nothing")
    if existing and not overwrite:
        raise InvalidInput(
            f"output {folder} already holds {', '.join(existing)}: choose another folder with --output, "
            "or replace them with --overwrite"
        )
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InvalidInput(f"output {folder}: {path} is a file, expected a folder")
    reason = why_not_writable(folder, names)
    if reason is not None:
        raise InvalidInput(f"output {folder}: cannot be written ({reason}); choose another folder")


def why_not_writable(folder: Path, names: Sequence[str]) -> str | None:
    """Tries to make a folder and files in it, and removes them again; returns why that fails, or None.

    Permissions alone do not tell: not for the superuser, nor of full quotas, names that are too long, or file
    systems that nobody writes to.
    """
    made: list[Path] = []
    try:
        made += _make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in names:
            if not (folder / name).exists():
                (folder / name).touch(exist_ok=False)
                made.insert(0, folder / name)
    except OSError as error:
        return error.strerror or str(error)
    finally:
        for path in made:
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
    return None


@contextmanager
def staged_outputs(folder: Path, names: Sequence[str], overwrite: bool = False) -> Iterator[dict[str, Path]]:
    """Gives a temporary path for each file, and moves all of them to `folder` at the end.

    An exception leaves the folder as it was, and removes it where it was not there before.

    Args:
        folder: Where the files will be; made if need be.
        names: Their names. Each must have been written when the block ends.
        overwrite: Whether files of these names may be replaced.

    Raises:
        InvalidInput: As `check_outputs`.
    """
    check_outputs(folder, names, overwrite)
    made = _make_folder(folder)
    staging = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        yield {name: staging / name for name in names}
        for name in names:
            os.replace(staging / name, folder / name)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()
        raise
    shutil.rmtree(staging, ignore_errors=True)


def _make_folder(folder: Path) -> list[Path]:
    """Makes the folder and its parents, all of them or none; returns those made, the innermost first."""
    made: list[Path] = []
    try:
        for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            path.mkdir()
            made.insert(0, path)
    except OSError:
        for path in made:
            path.rmdir()
        raise
    return made
