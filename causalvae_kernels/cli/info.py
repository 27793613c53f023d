"""`info`: what this machine has, and which backends serve on it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .common import one_sentence_errors
from .console import stdout
from .machine import describe


@one_sentence_errors
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of tables.")] = False,
) -> None:
    """Show machine, versions, available backends with reasons, and environment variables."""
    facts = describe()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    console = stdout()
    _print_machine(console, facts)
    _print_ops(console, facts)
    _print_environment(console, facts)
    if facts["known_bad"]:
        for sentence in facts["known_bad"]:
            console.print(f"[bold red]known to be bad:[/] {escape(sentence)}")
    else:
        console.print("known-bad versions of torch and cuDNN: none here")


def _print_machine(console: Console, facts: dict[str, Any]) -> None:
    table = Table(title="machine", title_justify="left", show_header=False, title_style="bold")
    native = facts["native_cpu"]
    table.add_row("system", f"{facts['system']}, Python {facts['python']}")
    table.add_row(
        "processor", escape(f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads")
    )
    table.add_row("instruction set of torch", facts["torch_isa"])
    if native["available"]:
        tiles = "" if native["tiles"] is None else ", bfloat16 convolutions on AMX's matrix tiles"
        supported = ", ".join(native["supported_isas"])
        table.add_row("of the native CPU kernels", f"{native['isa']} (of {supported}){tiles}")
    else:
        table.add_row("native CPU kernels", f"[yellow]none:[/] {escape(native['reason'])}")
    if "budget_bytes" in facts["packed_weights"]:
        table.add_row(
            "packed weights may take", f"{facts['packed_weights']['budget_bytes'] / 2**20:,.0f} MiB"
        )
    mine = facts["measured_here"]
    if "folder" in mine:
        others = mine["of_other_conditions"]
        words = f"{mine['hold_here']} hold here" + (f", {others} under other conditions" if others else "")
        table.add_row("measured by you", escape(f"{words}, in {mine['folder']}"))
    if facts["gpus"]:
        for gpu in facts["gpus"]:
            words = f"{gpu['name']}, sm_{gpu['compute_capability'].replace('.', '')}, "
            table.add_row("GPU", escape(f"{words}{gpu['memory_bytes'] / 2**30:.0f} GiB"))
        table.add_row("CUDA, cuDNN", f"{facts['cuda']}, {facts['cudnn']}")
    else:
        table.add_row("GPU", "torch sees none")
    for package, version in facts["versions"].items():
        table.add_row(package, version or "[dim]not installed[/]")
    console.print(table)


def _print_ops(console: Console, facts: dict[str, Any]) -> None:
    table = Table(
        title=escape(f"backends, asked about {facts['ops_asked']}"),
        title_justify="left",
        title_style="bold",
    )
    for heading in ("op", "backend", ""):
        table.add_column(heading)
    for op in facts["ops"]:
        for index, (backend, sentence) in enumerate(op["backends"].items()):
            name = f"[bold green]{backend}[/]" if backend == op["chosen"] else backend
            table.add_row(op["name"] if index == 0 else "", name, escape(sentence))
        table.add_section()
    console.print(table)


def _print_environment(console: Console, facts: dict[str, Any]) -> None:
    table = Table(title="environment variables", title_justify="left", title_style="bold")
    table.add_column("name", no_wrap=True)
    for heading in ("value", "default", "meaning"):
        table.add_column(heading)
    for row in facts["environment"]:
        value = "[dim]unset[/]" if row["value"] is None else escape(row["value"])
        meaning = escape(row["meaning"])
        if row["problem"]:
            meaning += f" [red]{escape(row['problem'])}[/]"
        table.add_row(row["name"], value, escape(row["default"]), meaning)
    console.print(table)
