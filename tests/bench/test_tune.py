"""`tune`: which cells, that a wrong kernel is not timed, and that an interruption loses little."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels import InvalidInput
from causalvae_kernels.bench import tune as module
from causalvae_kernels.bench.tune import WrongResult, check_comparable, measure, tune
from causalvae_kernels.bench.tune_cells import DTYPES, KERNELS, Cell, cells
from causalvae_kernels.core import native
from causalvae_kernels.core.backend import Backend
from causalvae_kernels.core.op import op_named

CELL = Cell(torch.float32, (1, 3, 2, 4, 5), 16, (1, 3, 3))
OP = op_named("causal_conv3d")


def test_every_class_is_measured_once():
    found = cells()
    classes = [cell.shape_class for cell in found]
    assert len(set(classes)) == len(classes)
    assert {c.split(" ")[0] for c in classes} == {str(d).removeprefix("torch.") for d in DTYPES}
    assert {c.split(" ")[1] for c in classes} == set(KERNELS)
    assert "float32 1x3x3 stride 1x2x2 128->128, 1 frame of 4096 pixels" in classes
    assert "float16 3x3x3 512+->few, 2+ frames of 16 pixels" in classes


def test_more_work_only_adds_cells():
    small, large = cells(max_gflop=0.5), cells(max_gflop=1.0)
    assert 0 < len(small) < len(large) and set(small) < set(large)
    assert max(cell.gflop for cell in small) <= 0.5
    assert cells([torch.float16], ["1x1x1"], max_gflop=0.5)[0].kernel_size == (1, 1, 1)


def test_the_shapes_of_a_cell():
    strided = Cell(torch.float32, (1, 128, 4, 16, 18), 128, (1, 3, 3), (1, 2, 2))
    assert strided.shapes == "1x128x4x16x18 -> 1x128x4x8x9"
    assert strided.shape_class == "float32 1x3x3 stride 1x2x2 128->128, 2+ frames of 64 pixels"


def test_measuring():
    found = measure(CELL, "avx512", seconds=1e-9, backend="reference")
    assert (found.backend, found.default, found.isa) == ("reference", "aten", "avx512")
    assert found.shape_class == "float32 1x3x3 few->16, 2+ frames of 16 pixels"
    assert found.shapes == "1x3x2x4x5 -> 1x16x2x4x5"
    assert found.ms > 0 and found.default_ms > 0 and found.rounds in (1, 3)


@pytest.mark.parametrize("wrong", [lambda y: 1.01 * y, lambda y: y * float("nan")], ids=["scaled", "nan"])
def test_a_wrong_result_is_not_timed(monkeypatch, wrong):
    right = OP.backends["reference"]
    monkeypatch.setitem(
        OP.backends, "reference", Backend("reference", make=lambda *given: wrong(right.make(*given)))
    )
    with pytest.raises(WrongResult, match="reference differs from aten by .* for 1x3x2x4x5 -> 1x16x2x4x5"):
        measure(CELL, "avx512", seconds=1e-9, backend="reference")


def test_a_wrong_cell_does_not_end_the_run(monkeypatch):
    def fake(cell, isa, *, seconds):
        if cell == "bad":
            raise WrongResult("it differs")
        return cell

    monkeypatch.setattr(module, "measure", fake)
    saved, heard = [], []
    todo = [_Named("a"), _Named("bad"), _Named("b")]
    found, wrong = tune(todo, isa="avx2", save=lambda m: saved.append(list(m)), progress=heard.append)
    assert (found, wrong, saved) == (["a", "b"], ["it differs"], [["a", "b"]])
    assert heard == ["class of a", "class of bad", "class of b"]


def test_an_interruption_loses_nothing(monkeypatch):
    def fake(cell, isa, *, seconds):
        if cell == "stop":
            raise KeyboardInterrupt
        return cell

    monkeypatch.setattr(module, "measure", fake)
    saved = []
    for todo, expected in ((["a", "b", "stop", "c"], [["a", "b"]]), (["stop"], [])):
        saved.clear()
        with pytest.raises(KeyboardInterrupt):
            tune(
                [_Named(n) for n in todo],
                isa="avx2",
                save=lambda m: saved.append(list(m)),
                progress=lambda _: 0,
            )
        assert saved == expected


class _Named(str):
    @property
    def shape_class(self):
        return f"class of {self}"


class _Module:
    def supported_isas(self):
        return ["avx512", "avx2", "portable"]


COMPARABLE = {
    "the best, free": ("avx512", None, None),
    "the best, said to be free": ("avx512", "default", None),
    "avx2 on both sides": ("avx2", "avx2", None),
    "portable on both sides": ("portable", "SSE41", None),
    "avx2, oneDNN free": (
        "avx2",
        None,
        "CAUSALVAE_KERNELS_CPU_ISA asks for avx2 on a processor with avx512.* set ONEDNN_MAX_CPU_ISA=AVX2",
    ),
    "avx2, oneDNN otherwise": ("avx2", "AVX512_CORE", "set ONEDNN_MAX_CPU_ISA=AVX2 as well"),
    "the best, oneDNN held": ("avx512", "AVX2", "ONEDNN_MAX_CPU_ISA holds the framework to AVX2"),
}


@pytest.mark.parametrize("case", COMPARABLE)
def test_both_sides_use_one_instruction_set(monkeypatch, case):
    isa, held, sentence = COMPARABLE[case]
    monkeypatch.setattr(native, "cpu_module", _Module)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if held:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", held)
    if sentence is None:
        check_comparable(isa)
        return
    with pytest.raises(InvalidInput, match=sentence):
        check_comparable(isa)
