"""`decode`: clips from the latents of a data set, as they come out of the decoder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from rich.markup import escape

from ..bench.threads import num_threads
from ..core.env import BACKEND
from ..core.errors import InvalidInput
from ..core.optional import require
from ..core.outputs import check_outputs
from ..data.identity import vae_digest
from ..data.manifest import Folder
from ..data.posterior import ClipCoder
from ..data.shards import Entry, read_entries, read_tensors
from ..data.video import write_video
from ..models import swap
from ..models.loading import load_vae, video_vae_folder
from .common import (
    EXIT_FAILED,
    check_threads,
    check_word,
    default_device,
    one_sentence_errors,
    parse_device,
    parse_dtype,
)
from .console import ClipBar, stdout


@one_sentence_errors
def decode(
    latents: Annotated[
        Path, typer.Argument(help="A folder that `encode` wrote, or one of its shards.", metavar="DIR|FILE")
    ],
    weights: Annotated[Path, typer.Option(help="The diffusers folder with the VAE that encoded them.")],
    output: Annotated[Path, typer.Option(help="Folder for the clips, one mp4 file each.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace clips that exist.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default: the GPU if there is one.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Backend of the swapped ops; default: chosen per call.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; default: torch's choice.")] = None,
) -> None:
    """Decode the mean of each posterior to a clip, chunk by chunk; clips that exist are left alone."""
    check_word("--backend", backend, BACKEND.choices)
    check_threads(threads)
    torch_device = parse_device(device or default_device())
    place, class_name = video_vae_folder(weights)
    folder, entries = _open(latents)
    if class_name != folder.settings.model:
        raise InvalidInput(f"weights {place}: a {class_name}, the latents are of a {folder.settings.model}")
    check_outputs(output, (), overwrite=True)
    for module in ("av", "numpy", "safetensors", "diffusers"):
        require(module, "decode")
    wanted = [entry for entry in entries if "error" not in entry]
    missing = [entry for entry in wanted if overwrite or not _path_of(output, entry).exists()]
    with num_threads(threads):
        vae = load_vae(place, parse_dtype(folder.settings.dtype), class_name).requires_grad_(False)
        if vae_digest(vae) != folder.settings.vae:
            raise InvalidInput(
                f"weights {place}: not those that encoded {folder.path}, expected the weights with the "
                f"fingerprint {folder.settings.vae[:12]}…"
            )
        total = sum(entry["num_frames"] for entry in missing)
        with swap(vae.to(torch_device), frames="any", backend=backend) as handle, ClipBar() as bar:
            coder = ClipCoder(vae, handle, folder.settings)
            bar.begin("decoding", len(missing), total)
            frames = 0
            for done, entry in enumerate(missing, 1):
                _decode(folder, entry, coder, _path_of(output, entry))
                frames += entry["num_frames"]
                bar.count(done, frames)
    parts = [f"decoded {len(missing)} clips, {total} frames"]
    if len(missing) < len(wanted):
        parts.append(f"{len(wanted) - len(missing)} were there")
    if len(wanted) < len(entries):
        parts.append(f"{len(entries) - len(wanted)} have no latents")
    stdout().print("; ".join(parts), soft_wrap=True)
    stdout().print(f"written: {escape(str(output))}", soft_wrap=True)
    if not wanted:
        raise typer.Exit(EXIT_FAILED)


def _open(path: Path) -> tuple[Folder, list[Entry]]:
    """Return the data set, and what is known about those of its clips that are meant."""
    path = path.expanduser()
    if path.is_file():
        entries = read_entries(path)
        return Folder.read(path.parent), entries
    if not path.is_dir():
        raise InvalidInput(f"latents {path}: no such file or folder, expected what `encode` wrote")
    folder = Folder.read(path)
    return folder, list(folder.entries())


def _path_of(output: Path, entry: Entry) -> Path:
    """Return the file of a clip: its own name, with .mp4 behind another suffix."""
    source = PurePosixPath(entry["source"])
    return output / (source if source.suffix.lower() == ".mp4" else f"{source}.mp4")


def _decode(folder: Folder, entry: Entry, coder: ClipCoder, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mean = read_tensors(folder.path / entry["shard"], entry["key"])["mean"]
    frames = coder.decode(mean, entry["num_frames"], tiled=entry["tiled"])
    write_video(path, frames, Fraction(entry["fps"]))
