"""What was measured on this machine: one file per measurement, in the user's cache, outside of the package.

    <cache>/measurements/<conditions>/conditions.json          what the name stands for
    <cache>/measurements/<conditions>/<op>/<class>.json        one measurement, both names hashed

The conditions are all that a time depends on: the kernels, torch, Triton, and the processor with its number
of threads or the GPU with its driver. Under others a measurement is not found, and need not be removed. Files
are written under another name and renamed, so that several processes may measure at once; what cannot be read
counts as not measured, with one warning.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs
import torch

from . import env, native
from .errors import InvalidInput
from .outputs import PARTIAL, written_whole
from .processor import processor

FORMAT = 1
_CONDITIONS = "conditions.json"
_warned = False


def folder() -> Path:
    """Return where this user's measurements are; it need not exist."""
    given = env.CACHE.get()
    root = Path(given).expanduser() if given else platformdirs.user_cache_path("causalvae_kernels")
    return root / "measurements"


def conditions(architecture: str) -> dict[str, Any]:
    """Return what times on this device depend on, as plain data.

    Args:
        architecture: An instruction set, or "sm90" for the current GPU.
    """
    shared = {"kernels": _kernels(), "torch": torch.__version__}
    if not architecture.startswith("sm"):
        return {
            **shared,
            "processor": processor(),
            "isa": architecture,
            "tiles": native.cpu_tiles(),
            "threads": torch.get_num_threads(),
        }
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        **shared,
        "triton": _version("triton"),
        "gpu": gpu.name,
        "architecture": architecture,
        "multiprocessors": gpu.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": torch._C._cuda_getDriverVersion(),
        "cudnn": torch.backends.cudnn.version(),
    }


def key(architecture: str) -> str:
    """Return the name of the folder of what holds here; the argument is that of `conditions`."""
    return _digest(conditions(architecture))


def keep(op: str, architecture: str, entry: dict[str, Any]) -> None:
    """Write one measurement.

    Args:
        op: Name of the op.
        architecture: As in `conditions`.
        entry: Plain data; "class" names what was measured, and replaces an earlier measurement of it.

    Raises:
        InvalidInput: The cache cannot be written; the message says how to name another.
    """
    place = folder() / key(architecture)
    path = place / op / f"{_digest(entry['class'])}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (place / _CONDITIONS).exists():
            with written_whole(place / _CONDITIONS) as temporary:
                temporary.write_text(json.dumps(conditions(architecture), indent=2), encoding="utf-8")
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, **entry}), encoding="utf-8")
    except OSError as error:
        raise InvalidInput(
            f"{path.parent} cannot be written ({error}): name another folder in {env.CACHE.name}"
        ) from error


def found(op: str, architecture: str) -> Iterator[dict[str, Any]]:
    """Give what was measured of an op under these conditions; what cannot be read is left out."""
    place = folder() / key(architecture) / op
    try:
        names = sorted(n for n in os.listdir(place) if n.endswith(".json") and not n.startswith(PARTIAL))
    except OSError:
        return  # nothing was measured, or none may look
    for name in names:
        try:
            entry = json.loads((place / name).read_text(encoding="utf-8"))
            if entry["format"] == FORMAT:
                yield entry
        except (OSError, ValueError, TypeError, KeyError) as error:
            unreadable(place / name, error)


def unreadable(path: Path | str, error: Exception) -> None:
    """Warn, once, that a measurement cannot be used."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"a measurement in the cache cannot be used and counts as not there: {path} "
            f"({type(error).__name__}: {error}); causalvae-kernels tune --clear empties the cache",
            RuntimeWarning,
            stacklevel=2,
        )


def clear() -> int:
    """Remove all measurements of this user; return how many there were."""
    place = folder()
    number = sum(1 for _ in place.glob("*/*/*.json"))
    if place.exists():
        shutil.rmtree(place)
    return number


def summary() -> list[dict[str, Any]]:
    """Return, for every set of conditions, what it is and how many measurements there are of each op."""
    rows = []
    for place in sorted(path for path in folder().glob("*") if path.is_dir()):
        try:
            facts = json.loads((place / _CONDITIONS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            facts = None
        ops = {path.name: len(list(path.glob("*.json"))) for path in sorted(place.iterdir()) if path.is_dir()}
        rows.append({"folder": place.name, "conditions": facts, "measurements": ops})
    return rows


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _kernels() -> str:
    """Return a fingerprint of all kernels: the native modules, and the sources of what is compiled late."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(_version("causalvae_kernels").encode())
    for path in sorted((*package.glob("_C_*"), *package.glob("ops/**/*.py"))):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
