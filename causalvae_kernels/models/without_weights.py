"""Video VAEs of diffusers without weights: parameters on "meta", for plans and questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import InvalidInput

_PREFIX = "AutoencoderKL"


def model_without_weights(source: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build a model from its configuration alone.

    Args:
        source: A folder with a diffusers `config.json`, or with one in its subfolder `vae`; or a family, the
            name of its class without `AutoencoderKL`, in any case: "CogVideoX", "wan". A family has the
            widths that are its class's defaults: those of CogVideoX-2b, Wan 2.1, HunyuanVideo.
        dtype: Of the parameters.

    Raises:
        InvalidInput: There is no such folder or family, or no model can be built from the configuration.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        path = next(
            (p for p in (folder / "config.json", folder / "vae" / "config.json") if p.is_file()), None
        )
        if path is None:
            raise InvalidInput(f"{folder}: holds neither config.json nor vae/config.json of a diffusers VAE")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            name = config["_class_name"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InvalidInput(f"{path}: cannot be read as a configuration of diffusers ({error})") from error
        return _build(_class_of(str(name)), config, dtype)
    return _build(_class_of(str(source)), {}, dtype)


def _class_of(name: str) -> type[nn.Module]:
    classes = _classes()
    wanted = name.lower().removeprefix(_PREFIX.lower())
    for cls in classes:
        if cls.__name__.removeprefix(_PREFIX).lower() == wanted:
            return cls
    known = ", ".join(cls.__name__.removeprefix(_PREFIX) for cls in classes)
    raise InvalidInput(f"got the model {name!r}, expected a folder with a config.json, or one of: {known}")


def _classes() -> list[type[nn.Module]]:
    try:
        from diffusers.models import autoencoders
    except ImportError as error:
        raise InvalidInput(f"diffusers is needed to build a model, and is not there ({error})") from error
    found = (getattr(autoencoders, name) for name in sorted(dir(autoencoders)) if name.startswith(_PREFIX))
    return [cls for cls in found if isinstance(cls, type) and issubclass(cls, nn.Module)]


def _build(cls: type[nn.Module], config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    try:
        with torch.device("meta"):
            model = cls.from_config(config).eval().requires_grad_(False)
    # Whatever a class says about its configuration, it is the configuration.
    except Exception as error:
        raise InvalidInput(f"{cls.__name__}: cannot be built from its configuration ({error})") from error
    return nn.Module.to(model, dtype)  # diffusers' own warns of modules that it would keep in float32
