"""The command line `causalvae-kernels`: one file per command.

`--help` imports none of the optional packages.
"""

from __future__ import annotations

import warnings

import typer

from .bench import bench
from .check import check
from .common import VersionOption
from .console import accept_every_character
from .decode import decode
from .encode import encode
from .explain import explain
from .families import families
from .frames import frames
from .info import info
from .plan import plan
from .reconstruct import reconstruct
from .traffic import traffic
from .train import train
from .tune import tune
from .verify import verify

app = typer.Typer(
    name="causalvae-kernels",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _all_commands(version: VersionOption = False) -> None:
    """Fused causal 3D convolutions for video VAEs: inspect, verify, measure, plan and demonstrate them."""


for command in (
    info,
    explain,
    families,
    plan,
    check,
    encode,
    decode,
    verify,
    bench,
    traffic,
    tune,
    reconstruct,
    frames,
    train,
):
    app.command()(command)


def main() -> None:
    """Run the command line; warnings are shown as one line each."""
    accept_every_character()
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    app()
