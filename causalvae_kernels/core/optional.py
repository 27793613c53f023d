"""Packages that only the demo needs: imported when used, and named in one sentence when absent."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..core.errors import CausalVAEError

INSTALL = "pip install 'causalvae_kernels[demo]'"


class MissingPackage(CausalVAEError, ImportError):
    """An optional package is needed that is not installed; the message says how to install it."""


def require(module: str, purpose: str) -> ModuleType:
    """Imports an optional module.

    Args:
        module: Its import name, for example ``"av"``.
        purpose: What it is needed for, as the subject of the sentence: ``"reading a video"``.

    Raises:
        MissingPackage: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        package = module.partition(".")[0]
        raise MissingPackage(
            f"{purpose} needs the package {package!r}, which is not installed: {INSTALL}"
        ) from error
