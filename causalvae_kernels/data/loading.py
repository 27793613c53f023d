"""Clips are read in a thread while the one before is encoded: a bounded queue between the two."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from ..core.optional import MissingPackage
from .clips import Clip, probe_clip, reason_of
from .identity import file_digest
from .manifest import Folder
from .sampling import Sampling, read_sampled
from .shards import Entry

# A clip that waits, one that is read and one that is encoded: three in memory at most.
_WAITING = 1


@dataclass(frozen=True)
class Loaded:
    """A clip on its way to the VAE.

    Attributes:
        clip: As it was probed.
        digest: Of the file; None where it cannot be read.
        pixels: (T, H, W, 3), uint8; None for a clip that is known or broken.
        fps: Frames per second of what was taken.
        known: What is recorded about this very file already.
        error: Why it cannot be read.
    """

    clip: Clip
    digest: str | None = None
    pixels: Tensor | None = None
    fps: Fraction = Fraction(0)
    known: Entry | None = None
    error: str | None = None


def load_clip(clip: Clip, folder: Folder, sampling: Sampling, *, retry: bool = False) -> Loaded:
    """Read a clip, unless this file is in the data set already; whatever is wrong with it is in `error`.

    Args:
        clip: The file.
        folder: Of the data set.
        sampling: Which frames are taken.
        retry: Read again what is recorded as broken.
    """
    digest = None
    try:
        digest = file_digest(clip.path)
        known = folder.known(clip.source)
        if known is not None and known["sha256"] == digest and not (retry and "error" in known):
            return Loaded(clip, digest, known=known)
        clip = probe_clip(clip)
        if clip.reason is not None:
            return Loaded(clip, digest, error=clip.reason)
        pixels = torch.stack(list(read_sampled(clip.path, sampling, folder.settings.unit)))
        return Loaded(clip, digest, pixels, sampling.rate(clip.fps))
    except MissingPackage:
        raise
    except Exception as error:  # whatever a library says about a file, the file cannot be read
        reason = reason_of(error, clip)
        return Loaded(replace(clip, reason=reason), digest, error=reason)


class ReadAhead:
    """Iterates over what a function makes of each item, which runs in a thread, ahead of the consumer.

    Attributes:
        waited: Seconds that the consumer waited.
    """

    def __init__(self, load: Callable[[int], Loaded], tasks: Iterator[int]) -> None:
        """Begin to read; `close` ends it early."""
        self.waited = 0.0
        self._queue: queue.Queue[tuple[int, Loaded] | BaseException | None] = queue.Queue(_WAITING)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(load, tasks), name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, Loaded]]:
        """Yield each task and what was made of it; an error of the thread is raised here."""
        while True:
            begin = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - begin
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """End the thread after the clip that it reads."""
        self._closed.set()
        self._thread.join()

    def _run(self, load: Callable[[int], Loaded], tasks: Iterator[int]) -> None:
        try:
            for task in tasks:
                if not self._put((task, load(task))):
                    return
            self._put(None)
        except BaseException as error:  # raised again where the items are taken
            self._put(error)

    def _put(self, item: tuple[int, Loaded] | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
