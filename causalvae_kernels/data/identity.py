"""What a file and a VAE are, as hashes: the same hash, the same latents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

_BLOCK = 2**20


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def clip_key(source: str) -> str:
    """Return the key of a clip: 16 hexadecimal digits of the SHA-256 of its name."""
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def vae_digest(vae: nn.Module) -> str:
    """Return the SHA-256 of a VAE's class, configuration, and parameters and buffers with their dtypes.

    Settings that diffusers keeps for itself (where the model was loaded from, by which version) do not count.
    """
    config = {name: value for name, value in dict(vae.config).items() if not name.startswith("_")}
    digest = hashlib.sha256(type(vae).__name__.encode())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
