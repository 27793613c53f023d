"""What a record says about its machine: enough to compare, no name of it."""

from __future__ import annotations

import os
from typing import Any

import torch

from causalvae_kernels.cli.machine import describe


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Replace the host's name and library paths by processor, versions and threads."""
    facts = describe()
    machine_info.clear()
    machine_info.update(
        {name: facts[name] for name in ("system", "python", "processor", "cores", "torch_isa", "versions")}
    )
    machine_info["threads"] = torch.get_num_threads()
    machine_info["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS")


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keep percentiles and drop the single samples."""
    output_json.pop("commit_info", None)
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)
        for name in ("param", "params", "options"):
            entry.pop(name, None)
