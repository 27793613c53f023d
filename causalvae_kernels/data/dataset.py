"""Latents for training: random access to the clips of an encoded data set, and batches of equal shapes."""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from ..core.errors import InvalidInput
from ..core.optional import require
from .manifest import MANIFEST, Folder

DRAWS = ("sample", "mean")


class LatentDataset(Dataset):
    """The clips of a folder that `causalvae-kernels encode` wrote, by index, in the order of its manifest.

    An item is a dictionary: `latents` (C, l, h, w), `num_frames` for `vae.decode`, `fps` and `index`. Shards
    are mapped into memory: an item reads its own bytes and no others, in any number of workers. Clips that
    could not be encoded are left out.

    Attributes:
        entries: The lines of the manifest, of the clips that have latents.
        shapes: Of the latents of each clip.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        draw: str = "sample",
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Read the manifest; no latents are read yet.

        Args:
            path: The folder.
            draw: "sample": mean + exp(logvar / 2) * noise, with fresh noise on every access. "mean": the mean
                of the posterior.
            dtype: Of the latents; default: as they are stored. Samples are drawn in float32.
            generator: Of the noise. In a worker process of a DataLoader one is made of its seed and the
                worker's, which differ in each epoch. Default: torch's own, which the DataLoader seeds in each
                worker. Give it another seed in each process of a distributed run.

        Raises:
            InvalidInput: It is no such folder, none of its clips has latents, its shards are webdataset's, or
                there is no variance to draw samples with.
            MissingPackage: If safetensors is not installed.
        """
        self.path = Path(path).expanduser()
        settings = Folder.read(self.path).settings
        if draw not in DRAWS:
            raise InvalidInput(f"LatentDataset: draw is {draw!r}, expected one of {', '.join(DRAWS)}")
        if settings.form != "safetensors":
            raise InvalidInput(
                f"LatentDataset {self.path}: its shards are in the form {settings.form}, expected "
                "safetensors; read them with the package webdataset, or encode with --format safetensors"
            )
        if draw == "sample" and settings.moments == "mean":
            raise InvalidInput(
                f"LatentDataset {self.path}: holds means alone (encode --mode), expected draw='mean'"
            )
        if not (self.path / MANIFEST).is_file():
            raise InvalidInput(f"LatentDataset {self.path}: holds no {MANIFEST}; run encode to its end")
        require("safetensors", "reading a shard")
        lines = (self.path / MANIFEST).read_text(encoding="utf-8").splitlines()
        self.entries: list[dict[str, Any]] = [e for e in map(json.loads, lines) if "error" not in e]
        if not self.entries:
            raise InvalidInput(f"LatentDataset {self.path}: none of its {len(lines)} clips has latents")
        self.shapes = [tuple(entry["latents"]) for entry in self.entries]
        self._draw, self._dtype, self._generator = draw, dtype, generator
        self._opened: tuple[int, dict[str, Any]] = (os.getpid(), {})
        self._own: tuple[int, torch.Generator] | None = None

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a clip; see the class."""
        entry = self.entries[index]
        mean = self._tensor(entry, "mean")
        latents = mean
        # Cosmos has no variance: its only sample is the mean.
        if self._draw == "sample" and "logvar" in entry["moments"]:
            shape = mean.shape
            noise = torch.randn(shape, generator=self._worker_generator())
            deviation = (self._tensor(entry, "logvar").float() / 2).exp()
            latents = (mean.float() + deviation * noise).to(mean.dtype)
        return {
            "latents": latents if self._dtype is None else latents.to(self._dtype),
            "num_frames": entry["num_frames"],
            "fps": _rate(entry["fps"]),
            "index": index % len(self.entries),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: no open files, and of the generator its state.

        What torch makes of a generator itself cannot be read by a spawned process (torch 2.13).
        """
        state = dict(self.__dict__)
        state["_opened"], state["_own"] = (0, {}), None
        if self._generator is not None:
            state["_generator"] = bytes(self._generator.get_state().tolist())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned."""
        self.__dict__.update(state)
        if self._generator is not None:
            given = torch.tensor(list(state["_generator"]), dtype=torch.uint8)
            self._generator = torch.Generator()
            self._generator.set_state(given)

    def _tensor(self, entry: dict[str, Any], name: str) -> Tensor:
        from safetensors import safe_open

        if self._opened[0] != os.getpid():  # a worker that was forked opens its own
            self._opened = (os.getpid(), {})
        files = self._opened[1]
        if entry["shard"] not in files:
            files[entry["shard"]] = safe_open(str(self.path / entry["shard"]), "pt")
        return files[entry["shard"]].get_tensor(f"{entry['key']}.{name}")

    def _worker_generator(self) -> torch.Generator | None:
        worker = get_worker_info()
        if self._generator is None or worker is None:
            return self._generator
        if self._own is None or self._own[0] != worker.seed:
            seed = random.Random(f"{self._generator.initial_seed()} {worker.seed}").getrandbits(63)
            self._own = worker.seed, torch.Generator().manual_seed(seed)
        return self._own[1]


class ShapeBatches(Sampler[list[int]]):
    """Batches of indices whose latents have one shape, for `DataLoader(dataset, batch_sampler=…)`.

    In a distributed run every process gets as many batches as the others, of the same sizes; what is left
    over when they are dealt out is filled up from the beginning, or left out with `drop_last`.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        """Sort the clips by shape.

        Args:
            dataset: Its `shapes` decide.
            batch_size: Clips in a batch at most.
            shuffle: Draw clips within a shape, and batches, in another order in each epoch (`set_epoch`).
            drop_last: Leave out the last batch of a shape if it is smaller.
            seed: Of the order; the same in all processes.
            rank: Of this process; default: that of the process group, 0 without one.
            num_replicas: How many processes there are; default: the same way.

        Raises:
            InvalidInput: A number is too small.
        """
        import torch.distributed as dist

        grouped = dist.is_available() and dist.is_initialized()
        here = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
        self.rank = here[0] if rank is None else rank
        self.num_replicas = here[1] if num_replicas is None else num_replicas
        if batch_size < 1 or not 0 <= self.rank < self.num_replicas:
            raise InvalidInput(
                f"ShapeBatches: got batch_size {batch_size}, rank {self.rank} of {self.num_replicas}, "
                "expected a batch of at least 1, and a rank below the number of processes"
            )
        self.batch_size, self.shuffle, self.drop_last, self.seed = batch_size, shuffle, drop_last, seed
        self.epoch = 0
        buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, shape in enumerate(dataset.shapes):
            buckets[shape].append(index)
        self._buckets = [buckets[shape] for shape in sorted(buckets)]

    def set_epoch(self, epoch: int) -> None:
        """Draw another order; call it before each epoch with the same number in all processes."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return len(self._rounds(random.Random(0)))

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of this process."""
        for batches in self._rounds(random.Random(f"{self.seed} {self.epoch}")):
            yield batches[self.rank]

    def _rounds(self, draw: random.Random) -> list[list[list[int]]]:
        """Return rounds of one batch for each process; the batches of a round have one shape and size."""
        rounds = []
        for bucket in self._buckets:
            clips = draw.sample(bucket, len(bucket)) if self.shuffle else list(bucket)
            step = self.batch_size * self.num_replicas
            for start in range(0, len(clips), step):
                rounds += self._dealt(clips[start : start + step], clips)
        if self.shuffle:
            draw.shuffle(rounds)
        return rounds

    def _dealt(self, clips: list[int], all_clips: list[int]) -> list[list[list[int]]]:
        """Deal the clips of a round out to the processes."""
        replicas = self.num_replicas
        if len(clips) < self.batch_size * replicas:
            if self.drop_last:
                return []
            missing = -len(clips) % replicas
            clips = clips + [all_clips[i % len(all_clips)] for i in range(missing)]
        return [[clips[rank::replicas] for rank in range(replicas)]]


def _rate(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return int(numerator) / int(denominator or 1)
