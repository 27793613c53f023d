"""The tables of README.md and docs/measurements.md come from records."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from causalvae_kernels.bench.record import make_record, module_row, pad_row
from causalvae_kernels.bench.shares import GROUPS
from tests.support.records import LIMITS, conv, timings

TABLE = Path(__file__).resolve().parents[2] / "benchmarks" / "table.py"
pytestmark = pytest.mark.skipif(not TABLE.exists(), reason="needs the source tree")
PAGE = "docs/measurements.md"
MARKS = ("bench", "bench-amx", "bench-families", "bench-conv", "bench-pad", "bench-norms", "bench-upsample")


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("table", TABLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    """A project with the two pages that have the marks, and no record."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    blocks = "".join(f"<!-- {mark} -->\nold {mark}\n<!-- /{mark} -->\n" for mark in MARKS)
    (tmp_path / PAGE).write_text(f"before\n{blocks}after\n")
    (tmp_path / "README.md").write_text("<!-- bench-summary -->\nold\n<!-- /bench-summary -->\n")
    return tmp_path


def save(root, name, record):
    (root / "benchmarks" / "results" / name).write_text(json.dumps(record))


def pad():
    times = timings(**{"torch.cat": [6.0], "ours": [2.0]})
    from tests.support.records import WORKLOAD

    return pad_row(WORKLOAD, torch.float32, times, threads=2, backend="aten", limits=LIMITS)


def test_a_conv_record_gives_a_table_and_a_plot(table, root, capsys):
    pytest.importorskip("matplotlib")
    save(root, "cpu-conv.json", make_record([conv(1), conv(2)], {1: LIMITS, 2: LIMITS}))
    table.main(root)
    text = (root / PAGE).read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old bench\n" in text and "old bench-pad" in text and "old bench-conv" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("| 2x3-4x5x6"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["2x3-4x5x6", "float32", "6.0", "2.0", "", "2.0", "1.0", "4.00×", "2.00×", "389"]
    assert text.count("**4.00×**") == 1
    assert "![" in text and (root / "docs" / "cpu-conv.png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    said = capsys.readouterr().out
    assert "cpu.json is not there" in said and "cpu-pad.json is not there" in said


def test_a_pad_record_gives_bytes_and_times(table, root):
    save(root, "cpu-pad.json", make_record([pad()], {2: LIMITS}))
    table.main(root)
    text = (root / PAGE).read_text()
    assert "| 2-4x5x6 | float32 | 6.00 ms, 0.0 MB | 2.00 ms, 0.0 MB | 3.0× fewer | 3.0× faster |" in text
    assert not list(root.rglob(".partial-*"))


def vae(**further):
    """A record of the whole model as pytest-benchmark writes it."""
    e = {"reference_p50_ms": 40.0, "swapped_p50_ms": 10.0, "speedup_p50": 4.0}
    e |= {"reference_peak_mib": 8.0, "swapped_peak_mib": 3.6}
    entries = [
        {"name": "test_vae[float32-2b-9x32x48-encode]", "extra_info": dict(e)},
        {"name": "test_vae[bfloat16-2b-9x32x48-decode]", "extra_info": {**e, **further}},
    ]
    machine = {"processor": "P", "torch_isa": "AVX512", "threads": 2, "versions": {"torch": "2"}}
    return {"machine_info": machine, "benchmarks": entries}


@pytest.mark.parametrize("amx", [None, False, True])
def test_what_was_measured_on_is_said_above_the_table(table, root, amx):
    record = vae()
    record["machine_info"] |= {} if amx is None else {"amx": amx}
    save(root, "cpu-amx.json", record)
    table.main(root)
    said = f"P, AVX512{' and AMX' if amx else ''}, 2 threads, torch 2:"
    assert f"<!-- bench-amx -->\n{said}\n\n| widths" in (root / PAGE).read_text()


def test_an_old_record_of_the_model_has_no_further_columns(table, root):
    save(root, "cpu.json", vae())
    table.main(root)
    text = (root / PAGE).read_text()
    assert "| 2b, 9×32×48 | encode | float32 | 40.0 ms | 10.0 ms | 4.00× | 8 → 4 MiB |\n" in text
    assert "![" not in text and not (root / "docs" / "cpu-vae.png").exists()


def test_a_record_of_the_model_with_bytes_errors_and_shares(table, root):
    pytest.importorskip("matplotlib")
    groups = {
        f"{side}_ms_by_group": dict.fromkeys(GROUPS, ms) for side, ms in (("reference", 4), ("swapped", 1))
    }
    moved = {f"{side}_bytes_besides_convolutions": n for side, n in (("reference", 100), ("swapped", 24))}
    save(root, "cpu.json", vae(**groups, **moved, relative_error={"reference": 2e-7, "swapped": 5e-7}))
    table.main(root)
    text = (root / PAGE).read_text()
    assert "| 4.00× | 8 → 4 MiB | 0.24× | 2.0e-07 → 5.0e-07 |\n" in text
    assert "| 4.00× | 8 → 4 MiB |  |  |\n" in text  # the entry that lacks them
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "](cpu-vae.png)" in text
    assert (root / "docs" / "cpu-vae.png").read_bytes().startswith(b"\x89PNG")
    assert not list(root.rglob(".partial-*"))


@pytest.mark.parametrize("name", ["norms", "upsample"])
def test_a_record_of_norms_or_upsamplers(table, root, name):
    times = timings(diffusers=[6.0], diffusers_channels_last_3d=[8.0], ours=[3.0])
    errors, moved = (
        dict.fromkeys(times, 1e-7),
        {"diffusers": 30, "diffusers channels_last_3d": 30, "ours": 10},
    )
    row = module_row("o", "w", torch.float32, times, errors, moved, threads=2, backend="cpu", limits=LIMITS)
    save(root, f"cpu-{name}.json", make_record([row], {2: LIMITS}))
    table.main(root)
    text = (root / PAGE).read_text()
    assert "| op | workload | dtype | diffusers, ms | diffusers channels_last_3d, ms | ours, ms |" in text
    assert "| `o` | w | float32 | 6.00 ± 0 % | 8.00 ± 0 % | 3.00 ± 0 % | 2.00× | 3.0× fewer |" in text


def test_a_page_without_marks_is_refused_and_left_alone(table, root):
    (root / PAGE).write_text("nothing\n")
    save(root, "cpu-pad.json", make_record([pad()], {2: LIMITS}))
    with pytest.raises(SystemExit, match="no <!-- bench-pad --> … <!-- /bench-pad --> marks"):
        table.main(root)
    assert (root / PAGE).read_text() == "nothing\n"


def test_the_committed_pages_are_what_their_records_give(table):
    """Nobody edits a figure by hand, and no table outlives its record."""
    checkout = TABLE.parents[1]
    results = checkout / "benchmarks" / "results"
    records = {name: json.loads((results / name).read_text()) for name, *_ in table.BLOCKS}
    page, readme = (checkout / PAGE).read_text(), (checkout / "README.md").read_text()
    for name, mark, write, shares in table.BLOCKS:
        record = records[name]
        block = write(record) if shares is None else write(record, shares)
        assert table.put(page, mark, f"{table.measured_on(record)}:\n\n{block}") == page, mark
    assert table.put(readme, table.SUMMARY_MARK, table.summary_table(records)) == readme


def test_the_summary_waits_for_all_of_its_records(table, root):
    save(root, "cpu.json", vae())
    table.main(root)
    assert (root / "README.md").read_text() == "<!-- bench-summary -->\nold\n<!-- /bench-summary -->\n"


def test_the_summary_takes_rows_of_several_records(table, root, monkeypatch):
    rows = (("cpu.json", "test_vae[float32-2b-9x32x48-encode]", "A"),)
    rows += (("cpu-amx.json", "test_vae[bfloat16-2b-9x32x48-decode]", "B"),)
    monkeypatch.setattr(table, "SUMMARY", rows)
    amx = vae()
    amx["machine_info"]["amx"] = True
    save(root, "cpu.json", vae())
    save(root, "cpu-amx.json", amx)
    table.main(root)
    lines = (root / "README.md").read_text().splitlines()
    times = "0.04 s | 0.01 s | 4.00× | 8 → 4 MiB"
    assert f"| A | AVX512, 2 | float32 | {times} | [cpu.json](benchmarks/results/cpu.json) |" in lines
    record = "[cpu-amx.json](benchmarks/results/cpu-amx.json)"
    assert f"| B | AVX512 and AMX, 2 | bfloat16 | {times} | {record} |" in lines
    assert "old" not in lines


def test_a_record_of_families_gives_a_table(table, root):
    times = {
        f"{side}_p{p}_ms": t for side, t in (("reference", 30.0), ("swapped", 10.0)) for p in (20, 50, 80)
    }
    info = {
        **times,
        "swapped_p80_ms": 12.0,
        "speedup_p50": 3.0,
        "reference_peak_mib": 8,
        "swapped_peak_mib": 2,
    }
    entry = {"name": "test_family[float32-wan2.1-decode]", "extra_info": {**info, "size": "9×96×96"}}
    save(root, "cpu-families.json", {**vae(), "benchmarks": [entry]})
    table.main(root)
    (row,) = (line for line in (root / PAGE).read_text().splitlines() if line.startswith("| wan2.1"))
    cells = ["wan2.1, 9×96×96", "decode", "float32", "30 ms", "10 ms ± 10 %", "3.00×", "8 → 2 MiB"]
    assert [cell.strip() for cell in row.strip("|").split("|")] == cells
