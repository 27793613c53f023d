"""How much memory there is, and how much of it is free."""

from __future__ import annotations

import os

import torch

# Of a container: what it may use, what it uses, and how much of that are files which it would give up.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
_FILES = ("inactive_file", "total_inactive_file")
_UNKNOWN = 8 * 2**30


def total(device: torch.device | str = "cpu") -> int:
    """Return the bytes of memory that this process may use: the machine's, its container's, or the GPU's."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(device).total_memory
    found = [_pages("SC_PHYS_PAGES") or _UNKNOWN]
    limits = (_number(limit) for limit, *_ in _LIMITS)
    return min([*found, *(limit for limit in limits if limit is not None)])


def free(device: torch.device | str = "cpu") -> int:
    """Return the bytes that tensors on a device may still take.

    On a CPU it is what the system could give without swapping, or what is left to the container; on a GPU
    what the driver has free and what torch's allocator holds and nobody uses.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    found = [_available() or _pages("SC_AVPHYS_PAGES") or _UNKNOWN]
    for limit_path, used_path, statistics in _LIMITS:
        limit, used = _number(limit_path), _number(used_path)
        if limit is not None and used is not None:
            found.append(max(limit - used + _file_pages(statistics), 0))
    return min(found)


def _available() -> int | None:
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            return next(
                (1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None
            )
    except OSError:
        return None  # not Linux


def _file_pages(path: str) -> int:
    try:
        with open(path, encoding="utf-8") as lines:
            numbers = dict(line.split() for line in lines)
    except (OSError, ValueError):
        return 0
    return max(int(numbers.get(name, 0)) for name in _FILES)


def _pages(name: str) -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf(name)
    except (AttributeError, ValueError, OSError):
        return None  # not POSIX


def _number(path: str) -> int | None:
    """Return the number that a file holds, or None: no such file, or no limit."""
    try:
        with open(path, encoding="utf-8") as file:
            word = file.read().strip()
    except OSError:
        return None
    return int(word) if word.isdecimal() else None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that torch could not get memory, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
