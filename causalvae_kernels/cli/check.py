"""`check`: what a VAE would do to the clips of a data set, before any of them is encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..core.errors import InvalidInput
from ..core.optional import require
from ..core.outputs import written_whole
from ..data.clips import find_clips, probe_clip
from ..data.counts import POLICIES, ClipCheck, check_clip, counts
from ..models.family_names import family_class
from ..models.loading import spatial_unit, video_vae_folder
from ..models.without_weights import model_without_weights
from ..temporal import FrameRule, frame_rule
from .common import EXIT_FAILED, check_file, check_word, one_sentence_errors
from .console import progress_bar, stderr, stdout

LIST = Path("clips.jsonl")


@one_sentence_errors
def check(
    paths: Annotated[list[str], typer.Argument(help="Video files, and folders of them.", metavar="PATH...")],
    family: Annotated[
        str | None, typer.Option(help="A family, as `families` lists it, with the settings of its class.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Instead: a diffusers folder; its config.json is all that is read.")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every frame, rather than count packets.")
    ] = False,
    select: Annotated[
        str | None,
        typer.Option(
            help="Write the clips that any, pad or trim can use, or those that are valid, with their counts."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="File for --select, a line of JSON per clip.")] = LIST,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> None:
    """Tell which clips a VAE would harm: frames lost, added or spoilt. Exit code 1 if there are any."""
    if (family is None) == (weights is None):
        raise InvalidInput("check: expected --family NAME or --weights FOLDER, one of both")
    check_word("--select", select, POLICIES)
    if select is None and output != LIST:
        raise InvalidInput(f"--output: got {output} without --select, which writes it")
    if select is not None:
        check_file("--output", output)
    clips = find_clips(paths)
    source = family_class(family) if weights is None else video_vae_folder(weights)[0]
    require("av", "check")
    model = model_without_weights(source)
    rule, unit = frame_rule(model), spatial_unit(model)
    with progress_bar() as bar:
        rows = [
            check_clip(probe_clip(clip, decode=decode), rule, unit)
            for clip in bar.track(clips, description="clips")
        ]
    if as_json:
        facts = {"model": rule.model, "frame_rule": rule.words(), "size_unit": unit}
        facts |= {"clips": [row.as_dict() for row in rows], "harmed": sum(row.harmed for row in rows)}
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print(rows, rule, unit)
    if select is not None:
        _write(output, rows, select)
    if any(row.harmed for row in rows):
        raise typer.Exit(EXIT_FAILED)


def _write(output: Path, rows: list[ClipCheck], policy: str) -> None:
    """Write the clips that a policy can use; those of a wrong size and broken ones are left out."""
    usable = [row for row in rows if policy in row.plans and row.size_fits]
    lines = (
        json.dumps({"path": str(row.clip.path), "policy": policy, **counts(row.plans[policy])})
        for row in usable
    )
    with written_whole(output) as path:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    left = f", {len(rows) - len(usable)} left out" if len(usable) < len(rows) else ""
    stderr().print(f"written: {escape(str(output))}, {len(usable)} clips{left}", soft_wrap=True)


def _print(rows: list[ClipCheck], rule: FrameRule, unit: int) -> None:
    table = Table()
    table.add_column("clip", overflow="fold")
    for heading in ("frames", "rate", "size", "as shipped", "pad", "trim", "any"):
        table.add_column(heading, justify="left" if heading == "as shipped" else "right")
    for row in rows:
        clip = row.clip
        if clip.reason is not None:
            table.add_row(escape(clip.source), *[""] * 3, f"[red]broken:[/] {escape(clip.reason)}")
            continue
        size = f"{clip.width}×{clip.height}"
        colour = "green" if row.verdict == "fine" else "red"
        table.add_row(
            escape(clip.source),
            str(clip.frames),
            f"{float(clip.fps):.5g}",
            size if row.size_fits else f"[red]{size}[/]",
            f"[{colour}]{row.verdict}[/]" + ("" if row.size_fits else f"; [red]no multiple of {unit}[/]"),
            *(_count(row, policy) for policy in ("pad", "trim", "any")),
        )
    console = stdout()
    console.print(
        f"[bold]{rule.name}[/] takes {escape(rule.words())}; width and height in multiples of {unit}",
        soft_wrap=True,
    )
    console.print(table)
    harmed, broken = sum(row.harmed for row in rows), sum(row.clip.reason is not None for row in rows)
    console.print(f"{len(rows)} clips, {len(rows) - harmed} fine, {harmed - broken} harmed, {broken} broken")


def _count(row: ClipCheck, policy: str) -> str:
    plan = row.plans.get(policy)
    return "none" if plan is None else str(plan.run_frames)
