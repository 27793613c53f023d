"""What the commands share: how errors are told, and how words on the command line become values."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import torch
import typer

from .. import __version__
from ..core.errors import CausalVAEError, InvalidInput
from ..core.machine_memory import is_out_of_memory
from ..core.outputs import why_not_writable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Four to a processor only wait for each other; where the count is small, tests and habits want some more.
MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2

P = ParamSpec("P")
R = TypeVar("R")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"causalvae-kernels {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
]


def one_sentence_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Tell the errors that a user can mend in one sentence on stderr, without a traceback; add `--version`.

    Exit code 2 for what the package refuses, 1 for a full disk or too little memory.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        kwargs.pop("version", None)
        try:
            return command(*args, **kwargs)
        except CausalVAEError as error:
            sentence, code = str(error), EXIT_BAD_INPUT
        except OSError as error:
            sentence, code = str(error), EXIT_FAILED
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            sentence, code = (
                "out of memory: use a smaller shape, size or number of frames",
                EXIT_FAILED,
            )
        typer.echo(f"error: {' '.join(sentence.split())}", err=True)
        raise typer.Exit(code)

    signature = inspect.signature(command, eval_str=True)
    version = inspect.Parameter(
        "version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=VersionOption
    )
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), version])
    run.__annotations__ = {**run.__annotations__, "version": VersionOption}
    return run


def parse_dtype(word: str) -> torch.dtype:
    """Turn "float32", "bfloat16" or "float16" into the dtype.

    Raises:
        InvalidInput: Another word was given.
    """
    if word not in DTYPES:
        raise InvalidInput(f"--dtype: got {word!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[word]


def parse_device(word: str) -> torch.device:
    """Turn "cpu", "cuda" or "cuda:1" into a device of this machine.

    Raises:
        InvalidInput: There is no such device here.
    """
    try:
        device = torch.device(word)
    except RuntimeError:
        raise InvalidInput(f"--device: got {word!r}, expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(f"--device: got {word!r}, expected cpu, cuda or cuda:N")
    if device.type == "cpu":
        if device.index:
            raise InvalidInput(
                f"--device: got {word!r}, expected cpu: torch has one CPU device, for all processors"
            )
        return torch.device("cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise InvalidInput(
                f"--device: got {word!r}, but torch {torch.__version__} sees no GPU here; use cpu"
            )
        if device.index is not None and device.index >= count:
            raise InvalidInput(f"--device: got {word!r}, expected cuda:0 to cuda:{count - 1}")
    return device


def default_device() -> str:
    """Return "cuda" where torch sees a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def parse_ints(option: str, text: str, count: int, separator: str, example: str) -> tuple[int, ...]:
    """Turn "3,3,3" or "640x272" into positive numbers.

    Raises:
        InvalidInput: It is something else; the message gives the example.
    """
    parts = text.lower().split(separator)
    if len(parts) != count or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InvalidInput(f"{option}: got {text!r}, expected {count} positive numbers like {example}")
    return tuple(int(part) for part in parts)


def check_least(*options: tuple[str, int | None, int]) -> None:
    """Require that numbers, where they are given, are at least what stands behind them.

    Args:
        options: (option, value, least) each.

    Raises:
        InvalidInput: One is less.
    """
    for option, value, least in options:
        if value is not None and value < least:
            raise InvalidInput(f"{option}: got {value}, expected at least {least}")


def check_threads(count: int | None) -> None:
    """Require a number of threads that a CPU can be asked to start.

    Raises:
        InvalidInput: It is below 1, or more than `MOST_THREADS`.
    """
    check_least(("--threads", count, 1))
    if count is not None and count > MOST_THREADS:
        raise InvalidInput(
            f"--threads: got {count}, expected at most {MOST_THREADS}; this machine has {os.cpu_count()} "
            "processors"
        )


def check_word(option: str, word: str | None, words: tuple[str, ...]) -> None:
    """Require one of a few words, or nothing.

    Raises:
        InvalidInput: It is none of them.
    """
    if word is not None and word not in words:
        raise InvalidInput(f"{option}: got {word!r}, expected one of {', '.join(words)}")


def check_file(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written, before anything is measured.

    Args:
        option: Its name.
        path: The file, or None.

    Raises:
        InvalidInput: It is a folder, or in none that can be written into.
    """
    if path is None:
        return
    try:
        if path.is_dir():
            raise InvalidInput(f"{option}: {path} is a folder, expected a file")
        if not path.parent.is_dir():
            raise InvalidInput(f"{option}: {path.parent} is no folder, expected one that exists")
        reason = why_not_writable(path.parent, [path.name])
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise InvalidInput(f"{option}: {path} cannot be written ({reason})")
