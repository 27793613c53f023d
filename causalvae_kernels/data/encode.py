"""The loop that encodes a data set, alone or as one of many processes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from ..core.errors import InvalidInput
from ..core.machine_memory import is_out_of_memory
from .clips import Clip, probe_clip
from .loading import Loaded, ReadAhead, load_clip
from .manifest import Folder
from .posterior import ClipCoder
from .sampling import Sampling
from .shards import Entry
from .team import Team

Progress = Callable[[int, int, int], None]
"""Told of the whole run: clips that are done, frames of them, and frames that had been done before."""


@dataclass
class Summary:
    """What a run did.

    Attributes:
        clips: That were encoded.
        frames: Of these.
        known: Clips that were in the data set already, encoded or broken.
        broken: Clips that could not be encoded in this run, and why.
        tiled: Clips that were encoded in tiles.
        seconds: From the first clip to the last, of the slowest process.
        busy_seconds: The same, summed over the processes.
        waited_seconds: That they waited for frames, of these.
        incomplete: Shards that are not complete.
    """

    clips: int = 0
    frames: int = 0
    known: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    tiled: int = 0
    seconds: float = 0.0
    busy_seconds: float = 0.0
    waited_seconds: float = 0.0
    incomplete: int = 0

    def merge(self, other: Summary) -> None:
        """Add what another process did."""
        for name in ("clips", "frames", "known", "tiled", "busy_seconds", "waited_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.broken |= other.broken
        self.seconds = max(self.seconds, other.seconds)


def longest_first(
    clips: Sequence[Clip], sampling: Sampling, unit: int, progress: Callable[[int, int], None]
) -> tuple[list[str], int]:
    """Return the names of the clips, those that take longest to encode first, and about how many frames.

    Args:
        clips: Not probed yet.
        sampling: What is taken of them.
        unit: Of which width and height must be multiples.
        progress: Called with the number of clips and of frames that were looked at.
    """
    costs: dict[str, int] = {}
    frames = 0
    for done, clip in enumerate(clips, 1):
        clip = probe_clip(clip)
        costs[clip.source] = 0
        if clip.reason is None:
            count = sampling.count(clip.frames, clip.fps)
            width, height = sampling.size or (clip.width // unit * unit, clip.height // unit * unit)
            costs[clip.source] = count * width * height
            frames += count
        progress(done, frames)
    return sorted(costs, key=lambda source: (-costs[source], source)), frames


def encode_clips(
    team: Team,
    folder: Folder,
    clips: dict[str, Clip],
    order: Sequence[str],
    coder: ClipCoder,
    sampling: Sampling,
    *,
    strict: bool = False,
    retry: bool = False,
    progress: Progress = lambda done, frames, before: None,
) -> Summary:
    """Encode the share of this process, and complete the shards whose last clip it has.

    Args:
        team: The processes that share the work.
        folder: Of the data set.
        clips: By name.
        order: Names of the clips that are to be in the data set, the same in every process.
        coder: Encodes a clip.
        sampling: Which frames are taken.
        strict: Raise at the first clip that cannot be encoded, rather than record it.
        retry: Try clips again that are recorded as broken.
        progress: Called after each clip.

    Returns:
        What this process did.

    Raises:
        InvalidInput: A clip cannot be encoded, and `strict` is set.
        OSError: The disk is full. Nothing half-written stays.
    """
    summary = Summary()
    waiting = Counter(folder.shard_of[source] for source in order)
    begin = time.perf_counter()
    ahead = ReadAhead(
        lambda task: load_clip(clips[order[task]], folder, sampling, retry=retry), team.tasks(len(order))
    )
    try:
        for task, loaded in ahead:
            _encode_one(loaded, folder, coder, summary, strict)
            progress(*_count(team, loaded))
            del loaded  # its frames, while the next ones are awaited
            shard = folder.shard_of[order[task]]
            if team.add(f"shard {shard}") == waiting[shard]:
                folder.assemble(shard)
    finally:
        ahead.close()
    summary.seconds = summary.busy_seconds = time.perf_counter() - begin
    summary.waited_seconds = ahead.waited
    return summary


def gather(team: Team, folder: Folder, summary: Summary, tick: Callable[[], None]) -> Summary | None:
    """Wait for all processes, write the manifest and return what they did; None but on the first process."""
    team.publish(f"summary {team.rank}", json.dumps(asdict(summary)))
    if team.rank != 0:
        return None
    total = Summary()
    for rank in range(team.size):
        total.merge(Summary(**json.loads(team.read_with(f"summary {rank}", tick))))
    total.incomplete = sum(not folder.shard_path(i).is_file() for i in range(len(folder.shards)))
    folder.write_manifest()
    return total


def done_so_far(team: Team) -> tuple[int, int, int]:
    """Return what `Progress` is told."""
    return team.add("clips", 0), team.add("frames", 0), team.add("frames before", 0)


def _count(team: Team, loaded: Loaded) -> tuple[int, int, int]:
    before = 0 if loaded.known is None else loaded.known.get("num_frames", 0)
    frames = 0 if loaded.pixels is None else len(loaded.pixels)
    return team.add("clips"), team.add("frames", frames), team.add("frames before", before)


def _encode_one(loaded: Loaded, folder: Folder, coder: ClipCoder, summary: Summary, strict: bool) -> None:
    """Encode a clip and keep it as a part, or keep why that cannot be done."""
    if loaded.known is not None:
        summary.known += 1
        return
    if loaded.error is None:
        loaded = _encoded(loaded, folder, coder, summary)
    if loaded.error is None:
        return
    if strict:
        raise InvalidInput(f"{loaded.clip.path}: {loaded.error} (--strict)")
    summary.broken[loaded.clip.source] = loaded.error
    folder.keep(_entry(loaded, folder, error=loaded.error), {})


def _encoded(loaded: Loaded, folder: Folder, coder: ClipCoder, summary: Summary) -> Loaded:
    try:
        tensors, facts = coder.encode(loaded.pixels)
    except InvalidInput as error:
        return replace(loaded, error=str(error))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return replace(loaded, error="the memory does not suffice, not even in tiles")
    clip = loaded.clip
    source = {"frames": clip.frames, "fps": str(clip.fps), "width": clip.width, "height": clip.height}
    folder.keep(_entry(loaded, folder, clip=source, fps=str(loaded.fps), **facts), tensors)
    summary.clips += 1
    summary.frames += facts["num_frames"]
    summary.tiled += facts["tiled"]
    return loaded


def _entry(loaded: Loaded, folder: Folder, **facts: object) -> Entry:
    return folder.entry(loaded.clip.source, sha256=loaded.digest, **facts)
