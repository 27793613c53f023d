"""Shards: many clips in one file, which tells by itself what it holds, and is there whole or not at all.

The bytes of a shard depend on the clips in it alone: not on when, where or in which order they were encoded.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import InvalidInput
from ..core.optional import require
from ..core.outputs import written_whole

Entry = dict[str, Any]
Tensors = dict[str, Tensor]

SUFFIXES = {"safetensors": ".safetensors", "webdataset": ".tar"}
_HEADER = "clips"
_MEMBER = "__clips__"  # names of this kind are no samples to webdataset


def shard_name(index: int, form: str) -> str:
    """Return the name of the file of a shard."""
    return f"shard-{index:05d}{SUFFIXES[form]}"


def write_shard(
    path: Path, entries: list[Entry], load: Callable[[Entry], Tensors], *, durable: bool = True
) -> None:
    """Write a shard, whole or not at all.

    Args:
        path: Its suffix says which form it has.
        entries: What is known about each clip, with its `key`; they are read back by `read_entries`.
        load: Gives the latents of a clip by name, none for a clip that could not be read.
        durable: Whether that holds for a power failure, too.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    with written_whole(path, durable=durable) as temporary:
        write = _write_tar if path.suffix == ".tar" else _write_safetensors
        write(temporary, entries, load)


def read_entries(path: Path) -> list[Entry]:
    """Return what a shard says about its clips.

    Raises:
        InvalidInput: It is no shard.
    """
    try:
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                text = archive.extractfile(_MEMBER).read().decode()
        else:
            with require("safetensors", "reading a shard").safe_open(str(path), "pt") as file:
                text = (file.metadata() or {})[_HEADER]
        return json.loads(text)
    except Exception as error:  # whatever the libraries say about a file that they cannot read
        raise InvalidInput(f"shard {path}: cannot be read ({error or type(error).__name__})") from error


def read_tensors(path: Path, key: str) -> Tensors:
    """Return the latents of one clip, by name; none where it has none.

    Raises:
        InvalidInput: It is no shard.
    """
    if path.suffix == ".tar":
        return _read_tar(path, key)
    with require("safetensors", "reading a shard").safe_open(str(path), "pt") as file:
        return {name.partition(".")[2]: file.get_tensor(name) for name in file.keys() if _is_of(name, key)}


def _is_of(name: str, key: str) -> bool:
    return name.partition(".")[0] == key


def _write_safetensors(path: Path, entries: list[Entry], load: Callable[[Entry], Tensors]) -> None:
    safetensors = require("safetensors.torch", "writing a shard")
    tensors = {f"{entry['key']}.{name}": t for entry in entries for name, t in load(entry).items()}
    try:
        # One item: the library writes several in no fixed order.
        safetensors.save_file(tensors, str(path), {_HEADER: _json(entries)})
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise OSError(f"{path.parent}: a shard cannot be written ({error})") from error


def _write_tar(path: Path, entries: list[Entry], load: Callable[[Entry], Tensors]) -> None:
    """Write a tar file as the package webdataset reads it: a sample per clip that has latents."""
    numpy = require("numpy", "writing a shard for webdataset")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, _MEMBER, _json(entries).encode())
        for entry in entries:
            tensors = load(entry)
            if tensors:
                _add(archive, f"{entry['key']}.json", _json(entry).encode())
            for name, tensor in tensors.items():
                content = io.BytesIO()
                numpy.save(content, tensor.numpy(), allow_pickle=False)
                _add(archive, f"{entry['key']}.{name}.npy", content.getvalue())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without times and owners
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _read_tar(path: Path, key: str) -> Tensors:
    import torch

    numpy = require("numpy", "reading a shard of webdataset")
    found: Tensors = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if _is_of(member.name, key) and member.name.endswith(".npy"):
                content = io.BytesIO(archive.extractfile(member).read())
                name = member.name.split(".")[1]
                found[name] = torch.from_numpy(numpy.load(content, allow_pickle=False))
    return found


def _json(value: Mapping[str, Any] | list[Entry]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)
