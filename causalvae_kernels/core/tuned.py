"""Measurements that let `auto` take a kernel of ours: the user's own, else `ops/<op>/tuned/<isa>.json`.

What `causalvae-kernels tune` measured on this machine is in the user's cache (`own_measurements`) and goes
before what the package brings. Of the latter there is a file for each instruction set of a CPU, another for
processors that have AMX besides ("avx512-amx"), and one for each architecture of GPUs ("sm90"). What the file
for processors like this one does not hold is looked up in that of the others. Without a row for the class of
a call, nothing was measured and `auto` keeps to its order. A file of the package that is there and cannot be
read is raised as an error that names it, from `auto` as well: it is a defect of this installation, and going
on without it would hide that behind a slower answer.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import env, gpu_arch, native, own_measurements
from .errors import BadMeasurements
from .processor import processor

# A kernel must be this many times as fast as the default to be taken, so that noise does not choose.
FASTER = 1.05
FORMAT = 1
GPU = "sm"
AMX = "-amx"

_NUMBERS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Measurement:
    """One class of calls, timed in alternation with the default backend.

    Attributes:
        shape_class: The class in words, the dtype first: "float32 3x3x3 128->128, 1 frame of 64 pixels".
        shapes: What was measured: "1x128x1x8x9 -> 1x128x1x8x9".
        ms: Median time in milliseconds.
        default_ms: Of the default backend.
        rounds: How often each was timed.
        backend: Name of the backend that was measured.
        default: Name of the default backend.
        isa: The instruction set of both, or the architecture of the GPU.
        plan: How the backend's kernel was cut into pieces, for one that has a choice; None for the others.
        objection: Why it says nothing about this processor, or None.
        passing: Whether the objection, or that there is none, may be another one at the next call.
        date: When it was measured on this machine; None for what the package brings.
        where: Processor and threads, or GPU, of what the package brings, in words; None if unknown.
    """

    shape_class: str
    shapes: str
    ms: float
    default_ms: float
    rounds: int
    backend: str
    default: str
    isa: str
    plan: dict[str, Any] | None = None
    objection: str | None = None
    passing: bool = False
    date: str | None = None
    where: str | None = None

    @property
    def ratio(self) -> float:
        """How many times as fast as the default the backend is."""
        return self.default_ms / self.ms

    @property
    def faster(self) -> bool:
        """Whether `auto` may take the backend."""
        return self.objection is None and self.default_ms > FASTER * self.ms

    @property
    def figures(self) -> str:
        """The numbers, for a sentence."""
        times = f"{_digits(self.ms)} against {_digits(self.default_ms)} ms"
        if self.date is not None:
            origin = f", measured here on {self.date}"
        elif self.where is None:
            origin = ""
        elif self.where in (_words_of(processor(), torch.get_num_threads()), *_gpu_names()):
            origin = ", measured on such a machine"
        else:
            origin = f", expected here: measured on {self.where}"
        return f"{times} for {self.shape_class}, {self.isa}{origin}"


@dataclass(frozen=True)
class Record:
    """The contents of one file.

    Attributes:
        backend: Name of the backend that was measured; rows of another one say so.
        default: Name of the default backend.
        isa: The instruction set of both, or the architecture of the GPU.
        amx: Whether the processor has AMX.
        machine: Where it was measured, as plain data.
        measurements: The rows.
    """

    backend: str
    default: str
    isa: str
    amx: bool
    machine: dict[str, Any]
    measurements: tuple[Measurement, ...]

    def text(self) -> str:
        """Return the file's contents, a row on each line, sorted."""
        head = {
            "format": FORMAT,
            "backend": self.backend,
            "default": self.default,
            "isa": self.isa,
            "amx": self.amx,
            "machine": self.machine,
        }
        rows = (
            json.dumps(_row(m, {"backend": self.backend}))
            for m in sorted(self.measurements, key=lambda m: _natural(m.shape_class))
        )
        opening = json.dumps(head, indent=2).removesuffix("\n}")
        listing = ",\n".join(f"    {row}" for row in rows)
        return f'{opening},\n  "rows": [\n{listing}\n  ]\n}}\n'


def read_record(path: Path) -> Record:
    """Read a file of measurements.

    Raises:
        BadMeasurements: It is malformed, or written in another format.
        OSError: It cannot be opened.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise BadMeasurements(
                f"{path} has format {facts['format']}, and this version of causalvae_kernels reads format "
                f"{FORMAT}: install the package again, or write the file anew with causalvae-kernels tune"
            )
        shared = {name: str(facts[name]) for name in ("backend", "default", "isa")}
        measurements = tuple(_measurement(row, shared) for row in facts["rows"])
        return Record(
            **shared, amx=bool(facts["amx"]), machine=dict(facts["machine"]), measurements=measurements
        )
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, BadMeasurements):
            raise
        raise BadMeasurements(
            f"{path} is malformed ({type(error).__name__}: {error}): install the package again, or write the "
            "file anew with causalvae-kernels tune"
        ) from error


def _measurement(row: dict[str, Any], shared: dict[str, str]) -> Measurement:
    times = float(row["ms"]), float(row["default_ms"])
    if not all(math.isfinite(ms) and ms > 0 for ms in times):
        raise ValueError(f"got times {times}, expected milliseconds above zero")
    plan = row.get("plan")
    return Measurement(
        str(row["class"]),
        str(row["shapes"]),
        *times,
        int(row["rounds"]),
        **{**shared, "backend": str(row.get("backend", shared["backend"]))},
        plan=None if plan is None else dict(plan),
    )


def _row(m: Measurement, shared: dict[str, str]) -> dict[str, Any]:
    """Return a measurement as plain data, without what is shared."""
    return {
        "class": m.shape_class,
        "shapes": m.shapes,
        "ms": float(f"{m.ms:.4g}"),
        "default_ms": float(f"{m.default_ms:.4g}"),
        "rounds": m.rounds,
        **({} if m.backend == shared["backend"] else {"backend": m.backend}),
        **({} if m.plan is None else {"plan": m.plan}),
    }


def keep_own(op: str, architecture: str, measurement: Measurement) -> None:
    """Write a measurement into the user's cache; models that are loaded do not read it any more.

    Raises:
        InvalidInput: The cache cannot be written.
    """
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    shared = {"backend": "", "default": measurement.default, "isa": measurement.isa, "date": date}
    own_measurements.keep(op, architecture, {**shared, **_row(measurement, shared)})


def read_own(op: str, architecture: str) -> dict[str, Measurement]:
    """Return what the user's cache holds for an op on this machine as it is now, by class."""
    table = {}
    for entry in own_measurements.found(op, architecture):
        try:
            shared = {name: str(entry[name]) for name in ("backend", "default", "isa")}
            found = replace(_measurement(entry, shared), date=str(entry["date"]))
        except (ValueError, TypeError, KeyError) as error:
            own_measurements.unreadable(f"one of {op}", error)
            continue
        table[found.shape_class] = found
    return table


class Tuned:
    """The measurements of one op; each file is read at the first call that asks for it.

    Args:
        folder: Where `<isa>.json` and, of an op that multiplies, `<isa>-amx.json` would be.
        multiplies: Whether the op multiplies matrices, so that processors with AMX have a file of their own.
        op: Its name in the user's cache, whose measurements go first; None: the cache is not looked at.
    """

    def __init__(self, folder: Path, *, multiplies: bool = True, op: str | None = None) -> None:
        self.folder = folder
        self.multiplies = multiplies
        self.op = op
        self._tables: dict[object, dict[str, Measurement]] = {}

    def find(self, isa: str, classes: Iterable[str]) -> Measurement | None:
        """Return the first measurement of these classes that holds here; if none does, the first at all.

        Raises:
            BadMeasurements: The file of this instruction set cannot be used.
        """
        table = self._tables.get(isa)
        if table is None:
            table = self._tables[isa] = self._load(isa)
        own = self._own(isa)
        if not table and not own:
            return None  # the classes may be worked out on the way
        first = None
        for shape_class in classes:
            found = own.get(shape_class) or table.get(shape_class)
            if found is not None and found.objection is None:
                return found
            first = first or found
        return first

    def _own(self, isa: str) -> dict[str, Measurement]:
        """Return what the user measured under the conditions that hold now."""
        if isa.startswith(GPU):
            comparable = torch.cuda.is_available()
        else:
            comparable = native.why_incomparable(isa) is None
        if self.op is None or not comparable:
            return {}
        key = (isa, torch.get_num_threads(), env.CACHE.get())
        if key not in self._tables:
            self._tables[key] = read_own(self.op, isa)
        return self._tables[key]

    def answers(self, isa: str, shape_class: str) -> bool:
        """Tell whether there is a measurement of this very class that holds here.

        Raises:
            BadMeasurements: The file of this instruction set cannot be used.
        """
        found = self.find(isa, (shape_class,))
        return found is not None and found.objection is None

    def path(self, isa: str) -> Path:
        """Return where measurements of an instruction set that are made here go."""
        return self._path(isa, amx=not isa.startswith(GPU) and has_amx())

    def _path(self, isa: str, *, amx: bool) -> Path:
        return self.folder / f"{isa}{AMX if amx and self.multiplies else ''}.json"

    def _load(self, isa: str) -> dict[str, Measurement]:
        if isa.startswith(GPU):
            return self._rows(self.path(isa), isa)
        others = self._path(isa, amx=not has_amx()) if self.multiplies else None
        return {**(self._rows(others, isa) if others else {}), **self._rows(self.path(isa), isa)}

    def _rows(self, path: Path, isa: str) -> dict[str, Measurement]:
        if not path.exists():
            return {}
        record = read_record(path)
        if record.isa != isa:
            raise BadMeasurements(f"{path} holds measurements of {record.isa}, expected {isa}")
        machine = record.machine
        if isa.startswith(GPU):
            objection, where = (
                _other_gpu(machine),
                " and ".join(gpu["name"] for gpu in machine.get("gpus", ())),
            )
            return {
                m.shape_class: replace(m, objection=objection, where=where or None)
                for m in record.measurements
            }
        where = None
        if machine.get("processor") and machine.get("threads"):
            where = _words_of(machine["processor"], machine["threads"])
        incomparable = native.why_incomparable(isa)
        if incomparable is not None:
            incomparable = f"measured with both on one instruction set ({incomparable})"
        return {
            m.shape_class: replace(
                m, objection=incomparable or _objection(m.shape_class, record.amx), where=where
            )
            for m in record.measurements
        }


def _words_of(name: str, threads: int) -> str:
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def _gpu_names() -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def architecture_of(device: torch.device) -> str | None:
    """Return the name of the file that holds measurements for calls on a device, or None if none can.

    On a CPU it is the instruction set of our kernels ("avx512"), on a GPU its architecture ("sm90").
    """
    if device.type == "cuda":
        return gpu_architecture(device) if torch.cuda.is_available() else None  # None: in a dry run alone
    if device.type != "cpu" or native.why_no_cpu() is not None:
        return None
    return native.cpu_isa()


def gpu_architecture(device: torch.device) -> str:
    """Return the name of a GPU's architecture: "sm90"."""
    return f"{GPU}{gpu_arch.capability_of(device)}"


def _other_gpu(machine: dict[str, Any]) -> str | None:
    """GPUs of one architecture differ in memory and clocks: what one prefers says little of another."""
    measured, here = [gpu["name"] for gpu in machine.get("gpus", ())], torch.cuda.get_device_name()
    if here in measured:
        return None
    return f"measured on {' and '.join(measured) or 'another GPU'}, and this is {here}"


def _objection(shape_class: str, measured_with_amx: bool) -> str | None:
    """AMX multiplies half-precision matrices several times as fast; nothing was compared with that."""
    dtype = shape_class.partition(" ")[0]
    if dtype not in ("bfloat16", "float16") or measured_with_amx == has_amx():
        return None
    word = "with" if measured_with_amx else "without"
    return (
        f"measured on a processor {word} AMX, whose matrix units make the framework's {dtype} convolution "
        "another one"
    )


@functools.cache
def has_amx() -> bool:
    """Tell whether the processor has AMX tiles."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if asked is not None:
        return bool(asked())
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return False  # not Linux, where no torch of today uses AMX
    return "amx_bf16" in flags or "amx_fp16" in flags


def _digits(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:,.0f}"


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key that takes numbers in a text by their value."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBERS.split(text))
