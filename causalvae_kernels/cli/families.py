"""`families`: what is replaced in which VAE, told by the rules themselves."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..core.errors import InvalidInput
from ..core.optional import require
from ..demo.families import FamilyFacts, all_families, markdown
from ..models.family_names import families as known_families
from ..models.loading import quiet_diffusers
from .common import one_sentence_errors
from .console import progress_bar, stdout


@one_sentence_errors
def families(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/families.md.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> None:
    """Show which modules of each VAE are replaced or left, and which frame counts it takes."""
    if as_markdown and as_json:
        raise InvalidInput("--markdown: does not go with --json")
    require("diffusers", "families")
    found: list[FamilyFacts] = []
    with quiet_diffusers(), progress_bar() as bar:
        task = bar.add_task("families", total=len(known_families()))
        for family in all_families():
            found.append(family)
            bar.update(task, advance=1, description=family.model)
    if as_markdown:
        typer.echo(markdown(found), nl=False)
    elif as_json:
        typer.echo(json.dumps([family.as_dict() for family in found], indent=2))
    else:
        _print(found)


def _print(found: list[FamilyFacts]) -> None:
    table = Table()
    for heading in ("family", "class", "replaced", "left", "frames as shipped"):
        table.add_column(heading)
    for family in found:
        kind = "" if family.has_rules else "[dim]recognised:[/] "
        replaced = kind + escape(", ".join(family.replaced))
        table.add_row(family.family, family.model, replaced, escape(", ".join(family.left)), family.frames)
        table.add_section()
    stdout().print(table)
