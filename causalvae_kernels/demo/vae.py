"""The VAE of the demo: a small one with random weights, or one from a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..core.errors import InvalidInput
from ..core.optional import require
from ..workloads import small_cogvideox_config

TRAINED_WEIGHTS_NOTE = (
    "a VAE of 1.9 M parameters trained for this demo: do not judge CogVideoX by the pictures"
)

WEIGHTS = Path(__file__).parent / "weights"

_CLASS_NAME = "AutoencoderKLCogVideoX"
_WEIGHTS_NAME = "diffusion_pytorch_model"


def small_random_vae(dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A small `AutoencoderKLCogVideoX` with random weights, in evaluation mode, on the CPU.

    Args:
        dtype: Of its parameters.
        seed: The same seed gives the same weights; the global random state is left alone.

    Raises:
        MissingPackage: If diffusers is not installed.
    """
    diffusers = _diffusers()
    with torch.random.fork_rng(devices=[]), quiet_diffusers():
        torch.manual_seed(seed)
        return diffusers.AutoencoderKLCogVideoX(**small_cogvideox_config()).to(dtype).eval()


def trained_vae(dtype: torch.dtype = torch.float32) -> Any:
    """The demo's small `AutoencoderKLCogVideoX`, trained on real clips (`training.py`).

    Args:
        dtype: Of its parameters.

    Raises:
        InvalidInput: If the weights are not here: wheels leave them out.
        MissingPackage: If diffusers is not installed.
    """
    if not WEIGHTS.is_dir():
        raise InvalidInput(
            "the demo's trained weights are not part of an installed wheel, expected a source tree or an "
            "editable install (make demo); or name a diffusers folder with an AutoencoderKLCogVideoX with "
            "--weights FOLDER"
        )
    return load_vae(WEIGHTS, dtype)


def named_vae(weights: Path | None, dtype: torch.dtype = torch.float32) -> tuple[Any, str]:
    """The VAE in a folder, or the trained one of the demo, and what to call it.

    Args:
        weights: As `load_vae`; None for `trained_vae`.
        dtype: Of its parameters.
    """
    if weights is None:
        return trained_vae(dtype), "small trained CogVideoX VAE"
    return load_vae(weights, dtype), f"CogVideoX VAE, {weights.name or weights}"


def load_vae(folder: str | Path, dtype: torch.dtype = torch.float32, class_name: str = _CLASS_NAME) -> Any:
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


def vae_folder(folder: str | Path, class_name: str = _CLASS_NAME) -> Path:
    """The folder that holds the VAE's ``config.json``: `folder`, or its subfolder ``vae``.

    Args:
        folder: The one, or the other.
        class_name: What the configuration must describe.

    Raises:
        InvalidInput: If there is none, or it describes another class.
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
    if found != class_name:
        raise InvalidInput(f"weights {candidate}: config.json describes {found}, expected {class_name}")
    return candidate


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


def spatial_factor(vae: Any) -> int:
    """By how much the VAE makes height and width smaller: both must be multiples of it."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


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
