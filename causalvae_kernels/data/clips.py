"""Clips: which video files there are, and what each says about itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from ..core.errors import InvalidInput, in_a_line
from ..core.optional import MissingPackage
from .video import open_video, rate_of, turn_of

SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv".split()
)
"""Names that a folder is searched for. A file that is given itself may have any name."""


@dataclass(frozen=True)
class Clip:
    """A video file, and what its header and packets say.

    Attributes:
        source: Its name in the data set: the path below the folder that was given, else the file's name.
        path: Where it is.
        frames: How many there are; None where it cannot be read.
        fps: Frames per second, the average where the rate varies.
        width: Pixels of a frame as it is seen: turned as the file says.
        height: The same.
        reason: Why it cannot be read, or None.
    """

    source: str
    path: Path
    frames: int | None = None
    fps: Fraction = Fraction(0)
    width: int = 0
    height: int = 0
    reason: str | None = None


def find_clips(paths: Iterable[str | Path]) -> list[Clip]:
    """Return the video files among the paths and in the folders among them, sorted by name; none is opened.

    Args:
        paths: Files of any name; folders, which are searched for `SUFFIXES` with all folders below them.

    Raises:
        InvalidInput: A path does not exist, two files would have the same name, or there is no clip at all.
    """
    found: dict[str, Path] = {}
    paths = [Path(path).expanduser() for path in paths]
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            named = [(p.relative_to(path).as_posix(), p) for p in inside]
        elif path.exists():
            named = [(path.name, path)]
        else:
            raise InvalidInput(f"clips {path}: no such file or folder, expected a video file or a folder")
        for source, file in named:
            other = found.setdefault(source, file)
            if other.resolve() != file.resolve():
                raise InvalidInput(
                    f"clips: {other} and {file} would both be called {source}, expected different names; "
                    "give one folder that holds both"
                )
    if not found:
        given = ", ".join(map(str, paths)) or "nothing"
        raise InvalidInput(
            f"clips: got {given}, without a video file, expected files or folders with "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return [Clip(source, found[source]) for source in sorted(found)]


def probe_clip(clip: Clip, *, decode: bool = False) -> Clip:
    """Return the clip with its frames, rate and size, or with the reason why it cannot be read.

    Packets are counted without decoding them, but for the first frame, whose size and turn are those of the
    picture. A header that promises more frames than the file has is a reason: the file was cut off.

    Args:
        clip: The clip.
        decode: Decode and count every frame, which takes long and also sees damage inside of packets.

    Raises:
        MissingPackage: If PyAV is not installed.
    """
    try:
        return _probe(clip, decode)
    except MissingPackage:
        raise
    except Exception as error:  # whatever a library says about a file, the file cannot be read
        return replace(clip, reason=reason_of(error, clip))


def reason_of(error: Exception, clip: Clip) -> str:
    """Return why a clip cannot be read, without its path."""
    words = str(error) if isinstance(error, InvalidInput | OSError) else in_a_line(error)
    return words.removeprefix("video ").removeprefix(f"{clip.path}: ")


def _probe(clip: Clip, decode: bool) -> Clip:
    decoded = packets = shown = corrupt = 0
    width = height = 0
    with open_video(clip.path) as (container, stream):
        for packet in container.demux(stream):
            if packet.size:
                packets += 1
                shown += not packet.is_discard
                corrupt += packet.is_corrupt
            if decode or not width:
                for frame in packet.decode():
                    decoded += 1
                    corrupt += frame.is_corrupt
                    if not width:
                        width, height = frame.width, frame.height
                        if turn_of(frame).aside:
                            width, height = height, width
        fps, promised = rate_of(stream), stream.frames
    if not width:
        raise InvalidInput("holds no frame")
    if packets < promised or corrupt:
        whole = packets - corrupt
        raise InvalidInput(f"is damaged or cut off: {max(promised, packets)} frames expected, {whole} whole")
    return replace(clip, frames=decoded if decode else shown, fps=fps, width=width, height=height)
