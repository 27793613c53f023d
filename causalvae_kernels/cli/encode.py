"""`encode`: the clips of a data set to latents, once, on as many processes as there are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

from ..bench.threads import num_threads
from ..core.env import BACKEND
from ..core.errors import CausalVAEError, InvalidInput
from ..core.optional import require
from ..core.outputs import check_outputs
from ..core.precision import TIERS, resolve_precision
from ..data.clips import Clip, find_clips
from ..data.encode import Summary, done_so_far, encode_clips, gather, longest_first
from ..data.identity import vae_digest
from ..data.manifest import MANIFEST, Folder, Settings, locked
from ..data.posterior import PACKED_BUDGET, ClipCoder
from ..data.sampling import Sampling
from ..data.shards import SUFFIXES
from ..data.team import Team, join_team
from ..data.verify import verify_clips
from ..models import swap
from ..models.loading import load_vae, spatial_unit, video_vae_folder
from .common import (
    EXIT_FAILED,
    check_least,
    check_threads,
    check_word,
    default_device,
    one_sentence_errors,
    parse_device,
    parse_dtype,
    parse_ints,
)
from .console import ClipBar, stderr, stdout

ORDER = "order"
ENCODED = ("any", "pad", "trim")


@one_sentence_errors
def encode(
    paths: Annotated[list[str], typer.Argument(help="Video files, and folders of them.", metavar="PATH...")],
    weights: Annotated[Path, typer.Option(help="A diffusers folder with the VAE.")],
    output: Annotated[Path, typer.Option(help="Folder for the data set: a new one, or one to go on with.")],
    frames: Annotated[int | None, typer.Option(help="Frames of a clip at most; default: all.")] = None,
    stride: Annotated[int, typer.Option(help="Every how manyth frame is taken.")] = 1,
    fps: Annotated[
        str | None, typer.Option(help="A rate to take frames at, before the stride: 24, 30000/1001.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="WIDTHxHEIGHT: cut out the middle and resize. Default: cut to multiples of the VAE's unit."
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option(help="any, pad or trim: what is done with a number of frames.")
    ] = "any",
    mode: Annotated[bool, typer.Option("--mode", help="Keep the mean of the posterior alone.")] = False,
    dtype: Annotated[str, typer.Option(help="Of the VAE: float32, bfloat16 or float16.")] = "float32",
    save_dtype: Annotated[str | None, typer.Option(help="Of the latents; default: that of the VAE.")] = None,
    format: Annotated[str, typer.Option(help="safetensors or webdataset.")] = "safetensors",
    clips_per_shard: Annotated[int, typer.Option(help="Clips in one file.")] = 64,
    memory_mib: Annotated[
        int | None,
        typer.Option(help="Tile what needs more memory. Default: what turns out not to fit."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first clip that cannot be encoded.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try clips again that are recorded as broken.")
    ] = False,
    verify: Annotated[
        int, typer.Option(help="Encode so many random clips again, compare the bits, decode them.")
    ] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default: the GPUs if there are any.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Backend of the swapped ops; default: chosen per call.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="exact or high.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; default: torch's choice.")] = None,
) -> None:
    """Encode clips with a swapped VAE, any number of frames; go on where an earlier run stopped."""
    torch_dtype = parse_dtype(dtype)
    saved = dtype if save_dtype is None else save_dtype
    _check_words(policy, saved, format, backend, precision)
    check_least(("--frames", frames, 1), ("--stride", stride, 1), ("--clips-per-shard", clips_per_shard, 1))
    check_least(("--verify", verify, 0), ("--memory-mib", memory_mib, 1))
    check_threads(threads)
    wanted = None if size is None else parse_ints("--size", size, 2, "x", "320x176")
    sampling = Sampling(frames, stride, None if fps is None else _parse_rate(fps), wanted)
    clips = {clip.source: clip for clip in find_clips(paths)}
    if os.environ.get("RANK", "0") == "0":
        check_outputs(output, (), overwrite=True)
    place, class_name = video_vae_folder(weights)
    for module in ("av", "numpy", "safetensors", "diffusers"):
        require(module, "encode")
    team = join_team()
    with ExitStack() as stack:
        stack.enter_context(num_threads(threads))
        vae = load_vae(place, torch_dtype, class_name).requires_grad_(False)
        unit = spatial_unit(vae)
        if wanted is not None and (wanted[0] % unit or wanted[1] % unit):
            raise InvalidInput(f"--size: got {size}, expected multiples of {unit} for {class_name}")
        settings = Settings(
            model=class_name,
            vae=vae_digest(vae) if team.rank == 0 else "",
            dtype=dtype,
            saved_dtype=saved,
            moments="mean" if mode else "mean+logvar",
            policy=policy,
            frames=frames,
            stride=stride,
            fps=None if sampling.fps is None else str(sampling.fps),
            size=wanted,
            unit=unit,
            backend=backend,
            precision=resolve_precision(precision),
            memory_mib=memory_mib,
            form=format,
            clips_per_shard=clips_per_shard,
        )
        vae = vae.to(_own_device(device, team))
        handle = stack.enter_context(
            swap(vae, frames="any", backend=backend, precision=precision, packed_budget=PACKED_BUDGET)
        )
        bar = stack.enter_context(ClipBar(enabled=team.rank == 0))
        if team.rank == 0:
            with _told_to_all(team):
                stack.enter_context(locked(output))
                Folder.prepare(output, settings, list(clips))
                bar.begin("looking at clips", len(clips))
                order, total = longest_first(list(clips.values()), sampling, unit, bar.count)
                team.publish(ORDER, json.dumps({"order": order, "frames": total}))
        order, total = _order(team)
        folder = Folder.read(output)
        coder = ClipCoder(vae, handle, folder.settings)
        bar.begin("encoding", len(order), total)
        summary = encode_clips(
            team, folder, clips, order, coder, sampling, strict=strict, retry=retry, progress=bar.count
        )
        done = gather(team, folder, summary, lambda: bar.count(*done_so_far(team)))
        bar.stop()
        if done is None:
            return
        _print(done, folder, output)
        if verify and not _verified(folder, clips, coder, sampling, verify):
            raise typer.Exit(EXIT_FAILED)


def _check_words(policy: str, saved: str, form: str, backend: str | None, precision: str | None) -> None:
    check_word("--policy", policy, ENCODED)
    check_word("--save-dtype", saved, ("float32", "bfloat16", "float16"))
    check_word("--format", form, tuple(SUFFIXES))
    check_word("--backend", backend, BACKEND.choices)
    check_word("--precision", precision, TIERS)
    if form == "webdataset" and saved == "bfloat16":
        raise InvalidInput(
            "--save-dtype: got bfloat16 with --format webdataset, whose arrays are numpy's, which has no "
            "bfloat16; expected float16 or float32"
        )


def _parse_rate(word: str) -> Fraction:
    try:
        rate = Fraction(word)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise InvalidInput(f"--fps: got {word!r}, expected a positive number like 24, 23.976 or 30000/1001")
    return rate


def _own_device(word: str | None, team: Team) -> torch.device:
    """Return the device of this process: of several, each takes a GPU of its own."""
    device = parse_device(word or default_device())
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", team.local_rank % torch.cuda.device_count())
    return device


@contextmanager
def _told_to_all(team: Team) -> Iterator[None]:
    """Let an error of the first process end the others, which wait for its answer."""
    try:
        yield
    except (CausalVAEError, OSError) as error:
        team.publish(ORDER, json.dumps({"error": str(error)}))
        raise


def _order(team: Team) -> tuple[list[str], int]:
    answer: dict[str, Any] = json.loads(team.read(ORDER))
    if "error" in answer:
        raise InvalidInput(answer["error"])
    return answer["order"], answer["frames"]


def _print(total: Summary, folder: Folder, output: Path) -> None:
    for source, reason in sorted(total.broken.items()):
        stderr().print(f"[yellow]broken:[/] {escape(source)}: {escape(reason)}", soft_wrap=True)
    parts = [f"encoded {total.clips} clips, {total.frames} frames"]
    if total.clips:
        parts[0] += f" in {total.seconds:.1f} s ({total.frames / total.seconds:.1f} frames/s)"
        share = total.waited_seconds / total.busy_seconds
        parts.append(f"the VAE waited for frames {share:.1%} of the time")
    if total.known:
        parts.append(f"{total.known} were there")
    if total.tiled:
        parts.append(f"{total.tiled} in tiles")
    if total.broken:
        parts.append(f"{len(total.broken)} broken")
    if total.incomplete:
        parts.append(f"{total.incomplete} shards are not complete: run it again")
    console = stdout()
    console.print("; ".join(parts), soft_wrap=True)
    written = f"{len(folder.shards)} shards and {MANIFEST}"
    console.print(f"written: {escape(str(output))}, {written}", soft_wrap=True)


def _verified(
    folder: Folder, clips: dict[str, Clip], coder: ClipCoder, sampling: Sampling, count: int
) -> bool:
    """Print what encoding again gives; return whether all bits are the same."""
    equal = True
    for row in verify_clips(folder, clips, coder, sampling, count, seed=0):
        words = row.reason or ("the same bits" if row.equal else "[red]OTHER BITS[/]")
        quality = "" if row.psnr is None else f", decoded: {row.psnr:.2f} dB"
        stdout().print(f"verified {escape(row.source)}: {words}{quality}", soft_wrap=True)
        equal &= row.equal
    return equal
