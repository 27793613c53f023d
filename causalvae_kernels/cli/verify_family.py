"""`verify --family`: parity, speed and frame counts of one family's swap on this machine, on one page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from ..bench.machine import device_words, versions
from ..bench.timing import percentile
from ..core.errors import InvalidInput
from ..core.selection import requested_backend
from ..demo import family_check as check
from ..demo.report import finite_or_null
from ..models import FAMILIES
from ..models.family_names import family_class
from ..models.loading import quiet_diffusers, spatial_unit, vae_folder
from .common import EXIT_FAILED, check_least, check_word, parse_dtype, parse_ints
from .console import progress_bar, stdout

DEFAULT_FRAMES, DEFAULT_ROUNDS, MOST_COUNTS = 17, 3, 17


@dataclass(frozen=True)
class Asked:
    """What the command line asks for; None: as the model has it best.

    Attributes:
        family: Word for the class.
        weights: Folder, or None for random weights.
        frames: Of the clip.
        size: HEIGHTxWIDTH.
        dtype: Its name.
        backend: Of the swapped ops.
        rounds: Of the timing.
        device: Where the models run, but for the oracle.
    """

    family: str
    weights: Path | None
    frames: int | None
    size: str | None
    dtype: str
    backend: str | None
    rounds: int
    device: torch.device


@dataclass
class Page:
    """What is shown and written; everything in it is plain data but for the rows."""

    facts: dict[str, Any]
    parity: list[check.ParityRow] = field(default_factory=list)
    speed: list[check.SpeedRow] = field(default_factory=list)
    frames: list[check.FrameRow] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing that was compared failed."""
        compared = all(row.comparison is None or row.comparison.passed for row in self.parity)
        return compared and all(row.passed for row in self.frames)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "passed": self.passed,
            **self.facts,
            "parity": [_parity_dict(row) for row in self.parity],
            "speed": [{**asdict(row), "speedup": row.speedup} for row in self.speed],
            "frames": [{**asdict(row), "passed": row.passed} for row in self.frames],
        }


def verify_family(asked: Asked, *, as_json: bool) -> None:
    """Check a family and print the page; exit code 1 where something fails.

    Raises:
        InvalidInput: A word, the folder, or a number does not fit.
    """
    check_least(("--frames", asked.frames, 1), ("--rounds", asked.rounds, 1))
    check_word("--backend", asked.backend, ("aten", "cpu", "triton", "reference"))
    class_name = family_class(asked.family)
    size = None if asked.size is None else parse_ints("--size", asked.size, 2, "x", "96x144")
    if asked.weights is not None:
        vae_folder(asked.weights, class_name)
    with quiet_diffusers(), progress_bar() as bar:
        vae = check.build(class_name, asked.weights, parse_dtype(asked.dtype)).to(asked.device)
        page = _page(vae, class_name, asked, size, bar, bar.add_task("starting", total=None))
    if as_json:
        typer.echo(json.dumps(finite_or_null(page.as_dict()), indent=2))
    else:
        _print(page)
    if not page.passed:
        raise typer.Exit(EXIT_FAILED)


def _page(
    vae: Any, class_name: str, asked: Asked, size: tuple[int, ...] | None, bar: Progress, task: TaskID
) -> Page:
    unit, rule = spatial_unit(vae), check.rule_of(vae)
    height, width = size or (max(2 * unit, 32), max(3 * unit, 48))
    if height % unit or width % unit:
        raise InvalidInput(f"--size: got {height}x{width}, expected multiples of {unit} for {class_name}")
    frames = asked.frames or (1 if rule is None else rule.nearest(DEFAULT_FRAMES, below=False))
    if rule is not None and rule.round_trip(frames) is None:
        below, above = (rule.nearest(frames, below=below) for below in (True, False))
        raise InvalidInput(f"--frames: {class_name} fails with {frames}; nearest valid: {below} and {above}")
    clip = check.clip_for(frames, (height, width), vae)
    choice = {"backend": asked.backend}
    replaced, left = check.what_is_left(vae, **choice)
    page = Page(
        {
            "model": class_name,
            "weights": None if asked.weights is None else str(asked.weights),
            "has_rules": class_name in FAMILIES,
            "parameters": sum(p.numel() for p in vae.parameters()),
            "frame_rule": None if rule is None else rule.words(),
            "clip": {"frames": frames, "height": height, "width": width},
            "dtype": asked.dtype,
            "backend": requested_backend(asked.backend)[0],
            "device": device_words(asked.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "replaced": dict(replaced),
            "left": [{"class": c, "reason": r, "modules": n} for (c, r), n in left.items()],
        }
    )

    def progress(words: str) -> None:
        bar.update(task, description=f"{class_name}: {words}", advance=1)

    bar.update(task, total=5 + 4 * (asked.rounds + 1) + min(frames, MOST_COUNTS), completed=0)
    page.parity.extend(check.check_parity(vae, clip, asked.backend, progress))
    page.speed.extend(check.check_speed(vae, clip, asked.backend, asked.rounds, progress))
    small = check.clip_for(min(frames, MOST_COUNTS), (2 * unit, 2 * unit), vae)
    page.frames.extend(check.check_frames(vae, small, progress))
    return page


def _parity_dict(row: check.ParityRow) -> dict[str, Any]:
    found = row.comparison
    told = {} if found is None else {**asdict(found), "passed": found.passed}
    return {"tier": row.tier, "step": row.step, **told, "note": row.note}


def _print(page: Page) -> None:
    console, facts = stdout(), page.facts
    clip = facts["clip"]
    weights = "random weights, a small configuration" if facts["weights"] is None else facts["weights"]
    rules = "" if facts["has_rules"] else "; no rules of its own: causal convolutions are recognised"
    parameters = f"{facts['parameters'] / 1e6:.1f} M parameters"
    console.print(f"[bold]{facts['model']}[/], {parameters}, {escape(weights)}{rules}", soft_wrap=True)
    where = f"{facts['device']}, torch {facts['versions']['torch']}"
    console.print(
        f"{clip['frames']} frames {clip['height']}×{clip['width']}, {facts['dtype']}; {escape(where)}",
        soft_wrap=True,
    )
    for table in (_modules_table(facts), _parity_table(page), _speed_table(page)):
        console.print(table)
    if facts["frame_rule"] is not None:
        console.print(_frames_table(page))
    _print_notes(console, page)
    console.print("[bold green]all passed[/]" if page.passed else "[bold red]FAILED[/]")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(heading)
    return table


def _modules_table(facts: dict[str, Any]) -> Table:
    table = _table("modules", "class", "number", "")
    for name, number in sorted(facts["replaced"].items()):
        table.add_row(escape(name), str(number), "[green]replaced[/]")
    for row in sorted(facts["left"], key=lambda row: row["class"]):
        table.add_row(escape(row["class"]), str(row["modules"]), escape(f"left: {row['reason']}"))
    return table


def _parity_table(page: Page) -> Table:
    headings = ("tier", "step", "error", "allowed", "worst element", "allowed", "")
    table = _table("parity with the unmodified model", *headings)
    for row in page.parity:
        found = row.comparison
        if found is None:
            table.add_row(row.tier, row.step, *[""] * 4, f"[yellow]not compared:[/] {escape(row.note)}")
            continue
        complaint = escape(found.complaint or "")
        verdict = "[green]passed[/]" if found.passed else f"[bold red]FAILED[/] {complaint}"
        exact = ("equal bits" if found.passed else "", "", "", "")
        numbers = [f"{n:.1e}" for n in (found.error, found.allowed, found.worst, found.worst_allowed)]
        note = f" {escape(row.note)}" if row.note else ""
        table.add_row(row.tier, row.step, *(exact if row.tier == "exact" else numbers), verdict + note)
    return table


def _speed_table(page: Page) -> Table:
    table = _table("speed, medians of alternating rounds", "step", "diffusers", "swapped", "speedup")
    for row in page.speed:
        times = (f"{percentile(times, 50):.1f} ms" for times in (row.original_ms, row.swapped_ms))
        table.add_row(row.step, *times, f"{row.speedup:.2f}×")
    return table


def _frames_table(page: Page) -> Table:
    title = f"frames out ({page.facts['frame_rule']} make the round trip as shipped)"
    table = _table(title, "frames in", "latents", "as shipped", 'frames="any"', "")
    for row in page.frames:
        cells = ["fails" if n is None else str(n) for n in (row.latents, row.shipped, row.adapted)]
        cells[-1] = "refused" if row.refused else cells[-1]
        if row.passed:
            verdict = "[green]passed[/]"
        else:
            verdict = f"[bold red]FAILED[/], expected {row.expected or 'a failure'} and {row.frames}"
        table.add_row(str(row.frames), *cells, verdict)
    return table


def _print_notes(console: Console, page: Page) -> None:
    for row in page.frames:
        if row.note:
            console.print(f"[dim]{row.frames} frames: {escape(row.note)}[/]", soft_wrap=True)
