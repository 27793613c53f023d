"""Versions of torch and cuDNN that are known to break 3D convolutions, as sentences."""

from __future__ import annotations

import torch

_HALF = (torch.bfloat16, torch.float16)


def known_bad_versions(torch_version: str | None = None, cudnn_version: int | None = None) -> list[str]:
    """Return a sentence for every known problem of these versions; an empty list is good news.

    Args:
        torch_version: Version of torch; default: the one that is running.
        cudnn_version: cuDNN's version as torch reports it (91002 is 9.10.2); default: the one in use, or
            none without CUDA.
    """
    return [sentence for sentence, _ in _known(torch_version, cudnn_version)]


def why_conv3d_is_broken(dtype: torch.dtype) -> str | None:
    """Return why the framework's 3D convolution on a GPU is not to be used in this dtype, or None."""
    return next((sentence for sentence, dtypes in _known(None, None) if dtype in dtypes), None)


def _known(torch_version: str | None, cudnn_version: int | None) -> list[tuple[str, tuple[torch.dtype, ...]]]:
    """Return each problem's sentence, and the dtypes that it concerns."""
    torch_version = torch_version or torch.__version__
    if cudnn_version is None and torch.cuda.is_available() and torch.backends.cudnn.is_available():
        cudnn_version = torch.backends.cudnn.version()
    if cudnn_version is None:
        return []
    found = []
    if 90800 <= cudnn_version < 91100:
        sentence = (
            f"cuDNN {cudnn_version}: 3D convolutions in bfloat16 can give wrong results in 9.8 to 9.10 "
            "(pytorch issue 163539); install cuDNN 9.15 or newer, or compute in float32"
        )
        found.append((sentence, (torch.bfloat16,)))
    major, minor = (int(part) for part in torch_version.split(".")[:2])
    if (major, minor) == (2, 9) and cudnn_version < 91500:
        sentence = (
            f"torch {torch_version} with cuDNN {cudnn_version}: 3D convolutions can take many times the "
            "memory (pytorch issue 166643); install cuDNN 9.15 or newer, or another torch"
        )
        found.append((sentence, _HALF))
    return found
