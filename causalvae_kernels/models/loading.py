"""VAEs from local folders of diffusers: `config.json` and safetensors, or a pipeline with these in `vae/`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import InvalidInput
from ..core.optional import require
from .family_names import families

_WEIGHTS_NAME = "diffusion_pytorch_model"
_COGVIDEOX = "AutoencoderKLCogVideoX"


def load_vae(folder: str | Path, dtype: torch.dtype = torch.float32, class_name: str = _COGVIDEOX) -> Any:
    """A VAE from a local diffusers folder; the network is never asked.

    Args:
        folder: Holds ``config.json`` and safetensors; or a pipeline's folder, which holds these in ``vae/``.
        dtype: Of its parameters.
        class_name: Its class in diffusers.

    Returns:
        The VAE in evaluation mode, on the CPU.

    Raises:
        InvalidInput: If there is no such folder, it holds another class, or the weights do not fit.
        MissingPackage: If diffusers is not installed.
    """
    folder = vae_folder(folder, class_name)
    variant = _variant(folder)
    cls = vae_class(class_name)
    with quiet_diffusers():
        try:
            vae, info = cls.from_pretrained(
                str(folder),
                torch_dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        # Whatever diffusers, safetensors or torch say about a folder that cannot be loaded, it is the folder.
        except Exception as error:
            raise InvalidInput(f"weights {folder}: cannot be loaded ({_first_sentence(error)})") from error
    for key, meaning in (
        ("mismatched_keys", "of another size"),
        ("missing_keys", "missing"),
        ("unexpected_keys", "not known to the configuration"),
    ):
        names = [name if isinstance(name, str) else name[0] for name in info.get(key, ())]
        if names:
            raise InvalidInput(
                f"weights {folder}: do not fit its config.json, {len(names)} tensors are {meaning} "
                f"(the first: {sorted(names)[0]})"
            )
    return vae.eval()


def vae_class(class_name: str) -> Any:
    """A class of diffusers.

    Raises:
        InvalidInput: The installed diffusers does not have it.
        MissingPackage: If diffusers is not installed.
    """
    diffusers = _diffusers()
    cls = getattr(diffusers, class_name, None)
    if cls is None:
        raise InvalidInput(f"diffusers {diffusers.__version__} has no {class_name}; install a newer one")
    return cls


def vae_folder(folder: str | Path, class_name: str = _COGVIDEOX) -> Path:
    """The folder that holds the VAE's ``config.json``: `folder`, or its subfolder ``vae``.

    Args:
        folder: The one, or the other.
        class_name: What the configuration must describe.

    Raises:
        InvalidInput: If there is none, or it describes another class.
    """
    candidate, found = folder_and_class(folder)
    if found != class_name:
        raise InvalidInput(f"weights {candidate}: config.json describes {found}, expected {class_name}")
    return candidate


def video_vae_folder(folder: str | Path) -> tuple[Path, str]:
    """The folder that holds the ``config.json`` of any video VAE whose frame rule is known, and its class.

    Raises:
        InvalidInput: If there is none, or it describes something else.
    """
    candidate, found = folder_and_class(folder)
    if found not in families():
        raise InvalidInput(
            f"weights {candidate}: config.json describes {found}, expected a video VAE, one of "
            f"{', '.join(families())}"
        )
    return candidate, found


def folder_and_class(folder: str | Path) -> tuple[Path, str | None]:
    """The folder that holds the ``config.json``, `folder` or its subfolder ``vae``, and the class in it.

    Raises:
        InvalidInput: If there is none, or it cannot be read.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InvalidInput(
            f"weights {folder}: {'is a file' if folder.exists() else 'no such folder'}, {_EXPECTED}"
        )
    for candidate in (folder, folder / "vae"):
        if (candidate / "config.json").is_file():
            break
    else:
        raise InvalidInput(f"weights {folder}: holds neither config.json nor vae/config.json, {_EXPECTED}")
    try:
        found = json.loads((candidate / "config.json").read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError, OSError) as error:
        raise InvalidInput(
            f"weights {candidate}: config.json cannot be read as a configuration ({error})"
        ) from error
    return candidate, found


_EXPECTED = "expected a diffusers folder with config.json and safetensors"


def _variant(folder: Path) -> str | None:
    """The part between name and suffix, such as ``fp16``; None for the plain name, which comes first."""
    names = sorted(path.name for path in folder.glob(f"{_WEIGHTS_NAME}*.safetensors*"))
    if not names:
        raise InvalidInput(f"weights {folder}: holds no {_WEIGHTS_NAME}*.safetensors, {_EXPECTED}")
    variants = {_variant_of(name) for name in names}
    return None if None in variants else sorted(v for v in variants if v)[0]


def _variant_of(name: str) -> str | None:
    """``…model.fp16-00001-of-00002.safetensors`` and ``…model.safetensors.index.fp16.json`` give ``fp16``."""
    parts = (
        name.removeprefix(_WEIGHTS_NAME)
        .removesuffix(".json")
        .replace(".safetensors", "")
        .replace(".index", "")
    )
    words = parts.split("-")[0].strip(".")
    return words or None


def spatial_unit(vae: nn.Module) -> int:
    """Return a number of which height and width must be multiples."""
    config = getattr(vae, "config", {})
    ratios = [vars(vae).get("spatial_compression_ratio"), config.get("spatial_compression_ratio")]
    return max([8, *(int(ratio) for ratio in (*ratios, config.get("scale_factor_spatial")) if ratio)])


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Keep diffusers' own warnings from the terminal; what matters in them is raised as an error here.

    Raises:
        MissingPackage: If diffusers is not installed.
    """
    logging = _diffusers().utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _diffusers() -> Any:
    return require("diffusers", "the reference VAE")


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
