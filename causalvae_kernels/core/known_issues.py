"""Versions of torch and cuDNN that are known to break 3D convolutions, as sentences."""

from __future__ import annotations

import torch


def known_bad_versions(torch_version: str | None = None, cudnn_version: int | None = None) -> list[str]:
    """Return a sentence for every known problem of these versions; an empty list is good news.

    Args:
        torch_version: Version of torch; default: the one that is running.
        cudnn_version: cuDNN's version as torch reports it (91002 is 9.10.2); default: the one in use, or
            none without CUDA.
    """
    torch_version = torch_version or torch.__version__
    if cudnn_version is None and torch.cuda.is_available() and torch.backends.cudnn.is_available():
        cudnn_version = torch.backends.cudnn.version()
    if cudnn_version is None:
        return []
    found = []
    if 90800 <= cudnn_version < 91100:
        found.append(
            f"cuDNN {cudnn_version}: 3D convolutions in bfloat16 can give wrong results in 9.8 to 9.10 "
            "(pytorch issue 163539); install cuDNN 9.15 or newer, or compute in float32"
        )
    major, minor = (int(part) for part in torch_version.split(".")[:2])
    if (major, minor) == (2, 9) and cudnn_version < 91500:
        found.append(
            f"torch {torch_version} with cuDNN {cudnn_version}: 3D convolutions can take many times the "
            "memory (pytorch issue 166643); install cuDNN 9.15 or newer, or another torch"
        )
    return found
