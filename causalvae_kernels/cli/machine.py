"""What this machine and this installation are, as plain data for `info` and for reports."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from .. import __version__
from ..core import native
from ..core.env import TABLE
from ..core.errors import CausalVAEError
from ..core.known_issues import known_bad_versions
from ..core.op import all_ops
from .example_calls import CallShape, call_arguments, op_names

PACKAGES = ("causalvae_kernels", "torch", "diffusers", "triton", "av", "matplotlib", "numpy")

# A call that every backend of today could take on the CPU: what is refused is refused for another reason.
_EXAMPLE = CallShape(shape=(1, 32, 4, 16, 16), out_channels=32)


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


def processor() -> str:
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


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
    """Return whether the native CPU module serves, why not, and its instruction sets."""
    reason = native.why_no_cpu()
    if reason is not None:
        return {"available": False, "reason": reason, "isa": None, "supported_isas": []}
    supported = [str(name) for name in native.cpu_module().supported_isas()]
    return {"available": True, "reason": None, "isa": native.cpu_isa(), "supported_isas": supported}


def ops() -> list[dict[str, Any]]:
    """Return, for each op, its backends and what each says about a small float32 call on the CPU."""
    found = []
    for op in all_ops():
        if op.name not in op_names():
            found.append(
                {"name": op.name, "chosen": None, "source": None, "backends": dict.fromkeys(op.backends, "")}
            )
            continue
        arguments, keywords = call_arguments(op.name, _EXAMPLE)
        answer = op.explain(*arguments, **keywords)
        found.append(
            {"name": op.name, "chosen": answer.chosen, "source": answer.source, "backends": dict(answer.rows)}
        )
    return found


def environment() -> list[dict[str, Any]]:
    """Return every variable that the package reads: name, value (None if unset), default, meaning."""
    rows = []
    for variable in TABLE:
        try:
            value, problem = variable.get(), None
        except CausalVAEError as error:
            value, problem = os.environ.get(variable.name), str(error)
        rows.append(
            {
                "name": variable.name,
                "value": value,
                "default": variable.default,
                "meaning": variable.meaning,
                "problem": problem,
            }
        )
    return rows


def describe() -> dict[str, Any]:
    """Return everything above, ready for JSON."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "native_cpu": _guarded(native_cpu),
        "gpus": gpus(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "versions": versions(),
        "ops": _guarded(ops),
        "environment": environment(),
        "known_bad": known_bad_versions(),
    }


def _guarded(describe_part: Any) -> Any:
    """A wrong environment variable must not keep `info` from telling what is wrong with it."""
    try:
        return describe_part()
    except CausalVAEError as error:
        if describe_part is ops:
            return []
        return {"available": False, "reason": str(error), "isa": None, "supported_isas": []}
