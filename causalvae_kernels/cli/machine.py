"""What this machine and this installation are, as plain data for `info` and for reports."""

from __future__ import annotations

import difflib
import os
import platform
from dataclasses import replace
from typing import Any

import torch

from ..bench.machine import cores, gpus, native_cpu, versions
from ..core import own_measurements
from ..core.env import PREFIX, TABLE
from ..core.errors import CausalVAEError
from ..core.known_issues import known_bad_versions
from ..core.op import all_ops
from ..core.packed import packed_budget, packed_size
from ..core.processor import processor
from ..core.tuned import architecture_of
from .example_calls import CallShape, call_arguments, op_names


def example() -> CallShape:
    """Return a call that every backend could take where this machine computes: on its GPU if it has one."""
    shape = CallShape(shape=(1, 32, 4, 16, 16), out_channels=32)
    if not torch.cuda.is_available():
        return shape
    device = torch.device("cuda", torch.cuda.current_device())
    return replace(shape, dtype=torch.bfloat16, device=device, channels_last=True)


def ops() -> list[dict[str, Any]]:
    """Return, for each op, its backends and what each says about a small call, `example`."""
    call = example()
    found = []
    for op in all_ops():
        if op.name not in op_names():
            found.append(
                {"name": op.name, "chosen": None, "source": None, "backends": dict.fromkeys(op.backends, "")}
            )
            continue
        arguments, keywords = call_arguments(op.name, call)
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
    return rows + _unknown_variables()


def _unknown_variables() -> list[dict[str, Any]]:
    """Return what is set under our prefix and read by nobody: a name that was mistyped."""
    known = [variable.name for variable in TABLE]
    rows = []
    for name in sorted(set(os.environ) - set(known)):
        if name.startswith(PREFIX):
            near = difflib.get_close_matches(name, known, 1) or known
            problem = f"no such variable, expected {' or '.join(near)}"
            facts = {"value": os.environ[name], "default": "", "meaning": "", "problem": problem}
            rows.append({"name": name, **facts})
    return rows


def packed_weights() -> dict[str, Any]:
    """Return how many bytes packed weights take in this process, and may take."""
    return {"bytes": packed_size(), "budget_bytes": packed_budget()}


def measured_here() -> dict[str, Any]:
    """Return where this user's measurements are, and how many hold here and elsewhere."""
    architecture = architecture_of(example().device)
    here = None if architecture is None else own_measurements.key(architecture)
    found = [(row["folder"] == here, sum(row["measurements"].values())) for row in own_measurements.summary()]
    return {
        "folder": str(own_measurements.folder()),
        "hold_here": sum(number for holds, number in found if holds),
        "of_other_conditions": sum(number for holds, number in found if not holds),
    }


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
        "packed_weights": _guarded(packed_weights),
        "measured_here": _guarded(measured_here),
        "gpus": gpus(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "versions": versions(),
        "ops": _guarded(ops),
        "ops_asked": _asked(),
        "environment": environment(),
        "known_bad": known_bad_versions(),
    }


def _asked() -> str:
    call = example()
    where = "the CPU" if call.device.type == "cpu" else f"the GPU, {torch.cuda.get_device_name(call.device)}"
    return f"a small {str(call.dtype).removeprefix('torch.')} call on {where}"


def _guarded(describe_part: Any) -> Any:
    """A wrong environment variable must not keep `info` from telling what is wrong with it."""
    try:
        return describe_part()
    except CausalVAEError as error:
        if describe_part is ops:
            return []
        return {"available": False, "reason": str(error), "isa": None, "supported_isas": []}
