"""Hook of MkDocs: pages that come from the code, and links that leave docs/.

The command line and the environment variables are read from the package when the site is built, so that their
pages cannot fall behind it. Markdown in docs/ is also read on its own, next to the sources: a link such as
`../../tests/mutants/README.md` works there, and becomes plain text here.
"""

from __future__ import annotations

import re
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from causalvae_kernels.cli import app
from causalvae_kernels.core.env import TABLE

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:tests|causalvae_kernels|benchmarks|csrc|examples)/[^)]*\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {"reference/command-line.md": command_line(), "reference/environment.md": environment()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Keep the words of a link to a file that is no part of the site."""
    return _OUTSIDE.sub(r"\1", markdown)


def command_line() -> str:
    """Return the page of all commands with their arguments and options."""
    group = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        "`causalvae-kernels COMMAND`, or `python -m causalvae_kernels COMMAND`.",
        "",
    ]
    lines += ["| command | what it does |", "|---|---|"]
    for name, command in group.commands.items():
        lines.append(f"| [`{name}`](#{name}) | {_cell(command.get_short_help_str(limit=200))} |")
    for name, command in group.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["causalvae-kernels", name, *(_usage(p) for p in arguments), "[OPTIONS]"])
        lines += ["", f"## {name}", "", " ".join((command.help or "").split()), "", f"`{usage}`", ""]
        lines += ["| option | meaning | default |", "|---|---|---|"]
        for parameter in command.params:
            lines.append(f"| {_names(parameter)} | {_meaning(parameter)} | {_default(parameter)} |")
    return "\n".join(lines) + "\n"


def _usage(parameter: Any) -> str:
    name = parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _meaning(parameter: Any) -> str:
    return _cell(getattr(parameter, "help", None) or "")


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or callable(value) or isinstance(value, bool) or value == () or "UNSET" in str(value):
        return ""
    return f"`{value}`"


def environment() -> str:
    """Return the page of all environment variables."""
    lines = [
        "# Environment variables",
        "",
        "`causalvae-kernels info` shows them, and marks wrong values.",
        "",
    ]
    lines += ["| variable | meaning | values | default |", "|---|---|---|---|"]
    for v in TABLE:
        values = ", ".join(f"`{choice}`" for choice in v.choices) or (
            "a whole number" if v.number else "text"
        )
        lines.append(f"| `{v.name}` | {_cell(v.meaning)} | {values} | {_cell(v.default)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
