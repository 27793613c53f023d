"""A folder with an encoded data set: what it was made with, which clip belongs into which shard, manifest.

`dataset.json` is written before any work: what everything in the folder is made with, and which clips share a
shard. `shard-00000.safetensors`, … hold the latents and what is known about each clip; `manifest.jsonl` has a
line per clip with the latter. `parts/` holds clips whose shard is not complete yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import InvalidInput
from ..core.outputs import PARTIAL, written_whole
from .identity import clip_key
from .shards import SUFFIXES, Entry, Tensors, read_entries, read_tensors, shard_name, write_shard

DATASET, MANIFEST, PARTS, LOCK = "dataset.json", "manifest.jsonl", "parts", ".lock"
_FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """What decides the latents of a data set: the same for every clip in it.

    Attributes:
        model: Class of the VAE.
        vae: Fingerprint of its class, configuration and weights.
        dtype: That it computes in.
        saved_dtype: Of the latents.
        moments: "mean+logvar" of the posterior, or "mean".
        policy: "any", "pad" or "trim".
        frames: As in `Sampling`.
        stride: The same.
        fps: The same, as a fraction in words.
        size: The same; None cuts to the unit.
        unit: Of which width and height are multiples.
        backend: Of the swapped ops; None: chosen for each call.
        precision: "exact" or "high".
        memory_mib: Memory above which a clip is tiled; None: only clips that do not fit are.
        form: "safetensors" or "webdataset".
        clips_per_shard: How many.
    """

    model: str
    vae: str
    dtype: str
    saved_dtype: str
    moments: str
    policy: str
    frames: int | None
    stride: int
    fps: str | None
    size: tuple[int, int] | None
    unit: int
    backend: str | None
    precision: str
    memory_mib: int | None
    form: str
    clips_per_shard: int


class Folder:
    """A data set on the disk.

    Attributes:
        path: Its folder.
        settings: What it is made with.
        shards: The names of the clips of each shard.
    """

    def __init__(self, path: Path, settings: Settings, shards: list[list[str]]) -> None:
        """Take over what `dataset.json` says, or is to say."""
        self.path, self.settings, self.shards = path, settings, shards
        self._cache: dict[int, list[Entry]] = {}
        self.shard_of = {source: index for index, sources in enumerate(shards) for source in sources}

    @classmethod
    def read(cls, path: Path) -> Folder:
        """Read `dataset.json`.

        Raises:
            InvalidInput: There is none, or it is of another version of this format.
        """
        file = path / DATASET
        if not file.is_file():
            raise InvalidInput(f"data set {path}: holds no {DATASET}, expected a folder that `encode` wrote")
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            if facts["format"] != _FORMAT:
                raise ValueError(f"format {facts['format']}, expected {_FORMAT}")
            settings = {**facts["settings"]}
            settings["size"] = settings["size"] and tuple(settings["size"])
            return cls(path, Settings(**settings), facts["shards"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"data set {path}: its {DATASET} cannot be read ({error})") from error

    @classmethod
    def prepare(cls, path: Path, settings: Settings, sources: list[str]) -> Folder:
        """Open a folder for writing: new, or with the same settings. New clips get new shards.

        Raises:
            InvalidInput: What is there was made with other settings, or is no data set.
        """
        path.mkdir(parents=True, exist_ok=True)
        shards: list[list[str]] = []
        if (path / DATASET).is_file():
            folder = cls.read(path)
            _check_same(path, folder.settings, settings)
            shards = folder.shards
        elif any(file.name != LOCK and not file.name.startswith(PARTIAL) for file in path.iterdir()):
            raise InvalidInput(
                f"output {path}: holds other files and no {DATASET}, expected an empty folder or a data set; "
                "choose another one with --output"
            )
        known = {source for shard in shards for source in shard}
        new = sorted(source for source in sources if source not in known)
        size = settings.clips_per_shard
        shards = shards + [new[start : start + size] for start in range(0, len(new), size)]
        for left in (*path.glob(f"{PARTIAL}*"), *(path / PARTS).glob(f"{PARTIAL}*")):
            left.unlink()  # of a run that was killed
        facts = {"format": _FORMAT, "settings": asdict(settings), "shards": shards}
        with written_whole(path / DATASET, durable=True) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (path / PARTS).mkdir(exist_ok=True)
        return cls(path, settings, shards)

    def shard_path(self, index: int) -> Path:
        """Return the file of a shard."""
        return self.path / shard_name(index, self.settings.form)

    def known(self, source: str) -> Entry | None:
        """Return what was recorded about a clip, by a part or else by its shard."""
        entry = self._part_entry(source)
        if entry is not None:
            return entry
        return next((e for e in self._entries(self.shard_of[source]) if e["source"] == source), None)

    def keep(self, entry: Entry, tensors: Tensors) -> None:
        """Write a clip, whole or not at all, until its shard is complete."""
        write_shard(self._part(entry["source"]), [entry], lambda _: tensors, durable=False)

    def assemble(self, index: int) -> bool:
        """Write a shard if all of its clips are there and one is new; return whether it is complete.

        Its parts are removed.
        """
        path = self.shard_path(index)
        old = {entry["source"]: entry for entry in self._entries(index)}
        new = {source: self._part_entry(source) for source in self.shards[index]}
        parts = {source: self._part(source) for source, entry in new.items() if entry is not None}
        entries = {source: new[source] or old.get(source) for source in self.shards[index]}
        if None in entries.values():
            return False
        if list(old.values()) != list(entries.values()):

            def load(entry: Entry) -> Tensors:
                return read_tensors(parts.get(entry["source"], path), entry["key"])

            write_shard(path, list(entries.values()), load)
            self._cache.pop(index, None)
        for part in parts.values():
            part.unlink()
        return True

    def entries(self) -> Iterator[Entry]:
        """Yield what the shards say about their clips."""
        self._cache.clear()  # other processes write shards as well
        for index in range(len(self.shards)):
            yield from self._entries(index)

    def tensors(self, entry: Entry) -> Tensors:
        """Return the latents of a clip, by name."""
        return read_tensors(self.path / entry["shard"], entry["key"])

    def write_manifest(self) -> None:
        """Write a line per clip of the shards that are there; remove the folder of parts if it is empty."""
        with written_whole(self.path / MANIFEST, durable=True) as temporary:
            lines = (json.dumps(entry, sort_keys=True) for entry in self.entries())
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if not any((self.path / PARTS).iterdir()):
            (self.path / PARTS).rmdir()

    def entry(self, source: str, **facts: Any) -> Entry:
        """Return what is recorded about a clip: the facts, and what holds for the whole data set."""
        settings = self.settings
        return {
            "source": source,
            "key": clip_key(source),
            "shard": shard_name(self.shard_of[source], settings.form),
            "model": settings.model,
            "vae": settings.vae,
            "dtype": settings.dtype,
            "saved_dtype": settings.saved_dtype,
            "policy": settings.policy,
            "version": __version__,
            **facts,
        }

    def _entries(self, index: int) -> list[Entry]:
        if index not in self._cache:
            path = self.shard_path(index)
            self._cache[index] = read_entries(path) if path.is_file() else []
        return self._cache[index]

    def _part_entry(self, source: str) -> Entry | None:
        """Return what a part says; None where there is none, or a power failure left half of it."""
        part = self._part(source)
        if not part.is_file():
            return None
        try:
            return read_entries(part)[0]
        except InvalidInput:
            part.unlink()
            return None

    def _part(self, source: str) -> Path:
        return self.path / PARTS / f"{clip_key(source)}{SUFFIXES['safetensors']}"


def _check_same(path: Path, there: Settings, given: Settings) -> None:
    """Refuse to go on with other settings than those that the folder was made with."""
    for field in fields(Settings):
        old, new = getattr(there, field.name), getattr(given, field.name)
        if old != new:
            if field.name == "vae":
                old, new = f"{old[:12]}…", f"{new[:12]}…, other weights or another configuration"
            raise InvalidInput(
                f"output {path}: was made with {field.name} {old}, got {new}; go on with the same settings, "
                "or choose another folder with --output"
            )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a folder to this process, where the system has such locks; the lock goes with the process.

    Raises:
        InvalidInput: Another process has it.
    """
    path.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # of Windows
        yield
        return
    with (path / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidInput(
                f"output {path}: another run is writing there; wait for its end, or "
                "start both as one with torchrun"
            ) from error
        yield  # the file stays: a run that removed it could remove the lock of the next one
