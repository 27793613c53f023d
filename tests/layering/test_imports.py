"""Imports go one way, and importing the package needs torch and nothing else."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import causalvae_kernels

PACKAGE = Path(causalvae_kernels.__file__).parent
# core <- temporal <- ops <- coder, workloads <- parity, bench <- models <- data <- demo <- cli
RANKS = {
    "core": 0,
    "temporal": 1,
    "ops": 2,
    "coder": 3,
    "workloads": 3,
    "parity": 4,
    "bench": 4,
    "models": 5,
    "data": 6,
    "demo": 7,
    "cli": 8,
}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)


def _imported(path: Path) -> list[tuple[str, str]]:
    """Return (layer, module) of every import from the package, wherever in the file it stands."""
    package = ("causalvae_kernels", *path.relative_to(PACKAGE).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "causalvae_kernels":
                found.append((parts[1] if len(parts) > 1 else "", name))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    layer = path.relative_to(PACKAGE).parts[0]
    for target, name in _imported(path):
        if (
            target == layer
            or target.startswith("_C_")
            or (target == "__version__" and layer in ("bench", "data", "demo", "cli"))
        ):
            continue
        assert target in RANKS, f"{path.name} imports {name}: not a layer"
        assert RANKS[target] < RANKS[layer], f"{path.name} ({layer}) imports {name} ({target})"


def test_every_layer_is_ranked():
    assert {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()} == set(RANKS)


def _python(code: str, *, hide: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    hiding = f"""
    import sys
    class Hide:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {hide!r} or name in {hide!r}:
                raise ModuleNotFoundError(f"hidden: {{name}}", name=name)
    sys.meta_path.insert(0, Hide())
    """
    source = textwrap.dedent(hiding) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", source], capture_output=True, text=True, timeout=300
    )


OPTIONAL = tuple(
    "diffusers triton av matplotlib numpy typer rich safetensors accelerate transformers pybind11 PIL".split()
)


def test_import_and_use_without_optional_parts():
    done = _python(
        """
        import torch, causalvae_kernels as cvk
        x, w = torch.randn(1, 2, 3, 4, 5), torch.randn(3, 2, 3, 3, 3)
        for backend in ("reference", "aten", "cpu"):
            print(tuple(cvk.causal_conv3d(x, w, backend=backend).shape))
        """,
        hide=OPTIONAL,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["(1, 3, 3, 4, 5)"] * 3


def test_without_the_native_module_it_works_and_says_so_once():
    done = _python(
        """
        import torch, causalvae_kernels as cvk
        x, w = torch.randn(1, 2, 3, 4, 5), torch.randn(3, 2, 3, 3, 3)
        for _ in range(3):
            cvk.causal_conv3d(x, w)
            cvk.causal_pad3d(x, 2)
        try:
            cvk.causal_conv3d(x, w, backend="cpu")
        except cvk.BackendUnavailable as error:
            print(error)
        """,
        hide=(*OPTIONAL, "causalvae_kernels._C_cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("runs without its native CPU kernels") == 1, done.stderr
    assert "'cpu' cannot run this call" in done.stdout and "aten can run this call" in done.stdout


def test_importing_loads_nothing_heavy():
    done = _python(
        """
        import sys, causalvae_kernels
        names = {n.split(".")[0] for n in sys.modules}
        heavy = sorted(names & {"diffusers", "triton", "av", "matplotlib", "typer"})
        print(heavy + [n for n in sys.modules if n == "causalvae_kernels._C_cpu"])
        """
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_no_path_of_a_machine_and_no_assert_in_the_package():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"/(home|root)/", text), path
        checks = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Assert)]
        assert not checks, f"{path}: input is checked with a sentence, not with assert"
