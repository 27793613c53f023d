"""Measures the native convolution against the framework's, cell by cell, for the choice that `auto` makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..core import native
from ..core.errors import CausalVAEError, InvalidInput
from ..core.tuned import Measurement
from ..ops import causal_conv3d
from ..workloads import ConvCase, make_conv_call
from .timing import time_once, time_providers
from .tune_cells import Cell

BACKEND, DEFAULT = "cpu", "aten"

_ROUNDS = (3, 30)  # least and most
_SAVED_EVERY = 25
_SEED = 0

# Largest norm-wise difference of the two, relative. Here a wrong kernel is kept from being timed;
# `causalvae-kernels verify` applies the tolerance rule.
_LARGEST_DIFFERENCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


class WrongResult(CausalVAEError):
    """A kernel that was to be timed does not compute the convolution."""


def check_comparable(isa: str) -> None:
    """Require that oneDNN is held to the instruction set of our kernels, and to no other.

    Raises:
        InvalidInput: It is not; the message names the variable to set.
        BackendUnavailable: The native module cannot be used.
    """
    reason = native.why_incomparable(isa)
    if reason is not None:
        raise InvalidInput(f"tune: {reason}")


def tune(
    cells: Sequence[Cell],
    *,
    isa: str,
    seconds: float = 0.3,
    save: Callable[[Sequence[Measurement]], None],
    progress: Callable[[str], None],
) -> tuple[list[Measurement], list[str]]:
    """Measure all cells.

    Args:
        cells: What to measure.
        isa: The instruction set in use.
        seconds: What to spend on the timed rounds of a cell, at least three rounds.
        save: Called with everything measured so far: every 25 cells, and at the end, also if the run is
            interrupted; not while there is nothing.
        progress: Called with a cell's class before it is measured.

    Returns:
        What was measured, and a sentence for each cell that was not because its result was wrong.
    """
    measured: list[Measurement] = []
    wrong = []
    try:
        for index, cell in enumerate(cells, 1):
            progress(cell.shape_class)
            try:
                measured.append(measure(cell, isa, seconds=seconds))
            except WrongResult as error:
                wrong.append(str(error))
            if measured and index % _SAVED_EVERY == 0:
                save(measured)
    finally:
        if measured:
            save(measured)
    return measured, wrong


@torch.no_grad()
def measure(cell: Cell, isa: str, *, seconds: float, backend: str = BACKEND) -> Measurement:
    """Compare the results of a backend and of the default one, then time the two in alternation.

    Raises:
        WrongResult: The results differ by more than rounding.
    """
    case = ConvCase(
        cell.shape_class,
        cell.shape,
        cell.out_channels,
        cell.kernel_size,
        state=cell.kernel_size[0] > 1,  # our kernels are quicker on a first chunk
        options={"stride": cell.stride},
    )
    call = make_conv_call(case, cell.dtype, _SEED)
    providers = {
        name: lambda name=name: causal_conv3d(**call, backend=name, precision="high")
        for name in (DEFAULT, backend)
    }
    difference = _difference(providers[backend](), providers[DEFAULT]())
    if not difference <= _LARGEST_DIFFERENCE[cell.dtype]:
        raise WrongResult(
            f"{backend} differs from {DEFAULT} by {difference:.2g} for {cell.shapes}, {cell.shape_class}; "
            f"expected at most {_LARGEST_DIFFERENCE[cell.dtype]:.2g}"
        )
    first = {name: time_once(provider) for name, provider in providers.items()}
    least, most = _ROUNDS
    if first[backend] > 2 * first[DEFAULT]:
        least = 1  # it loses, and the slowest cells of all are among these
    rounds = min(max(int(1e3 * seconds / sum(first.values())), least), most)
    timings = time_providers(providers, repeats=rounds, warmup=0)
    return Measurement(
        shape_class=cell.shape_class,
        shapes=cell.shapes,
        ms=timings[backend].p50_ms,
        default_ms=timings[DEFAULT].p50_ms,
        rounds=rounds,
        backend=backend,
        default=DEFAULT,
        isa=isa,
    )


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    got, expected = got.float(), expected.float()
    return ((got - expected).norm() / expected.norm()).item()
