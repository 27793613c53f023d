"""What this machine and this installation are, as plain data: for records, reports and `info`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from .. import __version__
from ..core import native
from ..core.processor import processor
from ..core.tuned import has_amx

PACKAGES = ("causalvae_kernels", "torch", "diffusers", "triton", "av", "matplotlib", "numpy")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each package without importing it; None where it is absent."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    if package == "causalvae_kernels":
        return __version__  # of the code that runs, which need not be the one that is installed
    if package == "torch":
        return torch.__version__  # with its build, such as 2.9.0+cpu
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[dict[str, Any]]:
    """Return name, compute capability and memory in bytes of each GPU that torch sees."""
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return found


def device_words(device: torch.device) -> str:
    """Return the name of the processor or GPU, for a report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def native_cpu() -> dict[str, Any]:
    """Return whether the native CPU module serves, why not, its instruction sets and matrix tiles."""
    reason = native.why_no_cpu()
    if reason is not None:
        return {"available": False, "reason": reason, "isa": None, "supported_isas": [], "tiles": None}
    supported = [str(name) for name in native.cpu_module().supported_isas()]
    used = {"isa": native.cpu_isa(), "supported_isas": supported, "tiles": native.cpu_tiles() or None}
    return {"available": True, "reason": None, **used}


def machine_words(facts: Mapping[str, Any], threads: int) -> str:
    """Return a record's `machine_facts` and its number of threads in words: for titles and captions."""
    found = [facts["processor"], facts["torch_isa"] + (" and AMX" if facts.get("amx") else "")]
    installed = (
        f"{name} {facts['versions'].get(name)}"
        for name in ("torch", "diffusers")
        if facts["versions"].get(name)
    )
    return ", ".join((*found, f"{threads} threads", *installed))


def machine_facts() -> dict[str, Any]:
    """Return what a record says about its machine: enough to compare, no name of it."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": processor(),
        "cores": cores(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "native_isa": native_cpu()["isa"],
        "amx": has_amx(),
        "versions": versions(),
        "gpus": gpus(),
    }
