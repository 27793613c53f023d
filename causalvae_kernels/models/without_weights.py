"""Video VAEs of diffusers without weights: parameters on "meta", for plans and questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import InvalidInput
from ..core.optional import install
from .family_names import families, family_class

_PREFIX = "AutoencoderKL"


def model_without_weights(source: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build a model from its configuration alone.

    Args:
        source: A path: a folder with a diffusers `config.json`, or with one in its subfolder `vae`. Or a word
            for a family, as `family_class` takes it; with the default widths of its class: those of
            CogVideoX-2b, Wan 2.1, HunyuanVideo.
        dtype: Of the parameters.

    Raises:
        InvalidInput: There is no such folder or family, or no model can be built from the configuration.
    """
    if not isinstance(source, Path):
        return _build(_class_of(family_class(source)), {}, dtype)
    folder = source.expanduser()
    if not folder.is_dir():
        raise InvalidInput(f"{folder}: no such folder, expected one with the config.json of a diffusers VAE")
    path = next((p for p in (folder / "config.json", folder / "vae" / "config.json") if p.is_file()), None)
    if path is None:
        raise InvalidInput(f"{folder}: holds neither config.json nor vae/config.json of a diffusers VAE")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name = str(config["_class_name"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InvalidInput(f"{path}: cannot be read as a configuration of diffusers ({error})") from error
    if not (name.startswith(_PREFIX) or name in families()):
        raise InvalidInput(
            f"{path}: describes {name!r}, expected a video VAE, one of {', '.join(families())}"
        )
    return _build(_class_of(name), config, dtype)


def _class_of(name: str) -> type[nn.Module]:
    try:
        import diffusers
    except ImportError as error:
        raise InvalidInput(
            f"building a {name} needs diffusers, which cannot be imported ({error}): {install('diffusers')}"
        ) from error
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise InvalidInput(f"diffusers {diffusers.__version__} has no {name}; install a newer one")
    return cls


def _build(cls: type[nn.Module], config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    try:
        with torch.device("meta"):
            model = cls.from_config(config).eval().requires_grad_(False)
    # Whatever a class says about its configuration, it is the configuration.
    except Exception as error:
        raise InvalidInput(f"{cls.__name__}: cannot be built from its configuration ({error})") from error
    return nn.Module.to(model, dtype)  # diffusers' own warns of modules that it would keep in float32
