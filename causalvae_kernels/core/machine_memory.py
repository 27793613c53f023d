"""How much memory there is, and how much of it is free."""

from __future__ import annotations

import os

import torch

_LIMITS = (
    # of a container: what it may use, what it uses
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_UNKNOWN = 8 * 2**30


def total() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's."""
    found = [_pages("SC_PHYS_PAGES") or _UNKNOWN]
    found += [limit for limit, _ in (map(_number, paths) for paths in _LIMITS) if limit is not None]
    return min(found)


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
    for limit, used in (map(_number, paths) for paths in _LIMITS):
        if limit is not None and used is not None:
            found.append(max(limit - used, 0))
    return min(found)


def _available() -> int | None:
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
    except OSError:
        return None  # not Linux


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
