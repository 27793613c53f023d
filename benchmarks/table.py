"""Write the tables of README.md and docs/measurements.md, and the plots, from the committed records.

Run `python benchmarks/table.py`. A record that is not there is skipped with a message, and its table stays as
it is. What a record does not hold yet has no column.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from causalvae_kernels.bench.machine import machine_words
from causalvae_kernels.bench.module_providers import OURS
from causalvae_kernels.bench.plot import Stack, plot_record, plot_shares
from causalvae_kernels.bench.record import geometric_mean, most_threads
from causalvae_kernels.workloads import GATED

ROOT = Path(__file__).resolve().parent.parent
PLOT = "docs/cpu-conv.png"


def vae_table(record: dict[str, Any], shares: str) -> str:
    """Return the Markdown table of encode and decode, from pytest-benchmark's own JSON, under its plot."""
    infos = [entry["extra_info"] for entry in record["benchmarks"]]
    further = [column for column in _FURTHER if any(column[1] in info for info in infos)]
    headings = ["widths, frames×height×width", "step", "dtype", "diffusers", "swapped", "speedup"]
    headings += ["peak memory", *(heading for heading, _, _ in further)]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for entry in record["benchmarks"]:
        e, (widths, size, step, dtype) = entry["extra_info"], _what(entry)
        cells = [f"{widths}, {size}", step, dtype, f"{e['reference_p50_ms']:.1f} ms"]
        cells += [f"{e['swapped_p50_ms']:.1f} ms", f"{e['speedup_p50']:.2f}×"]
        cells += [f"{e['reference_peak_mib']:.0f} → {e['swapped_peak_mib']:.0f} MiB"]
        cells += [words(e) if key in e else "" for _, key, words in further]
        lines.append(f"| {' | '.join(cells)} |")
    if _stacks(record):
        alt = "Share of each kind of operator in the time of encode and decode"
        lines[:0] = [f"![{alt}]({Path(shares).name})", ""]
    return "\n".join(lines)


def family_table(record: dict[str, Any]) -> str:
    """Return the Markdown table of the other families, from pytest-benchmark's own JSON."""
    lines = [
        "| model, frames×height×width | step | dtype | diffusers | swapped | speedup | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in record["benchmarks"]:
        e = entry["extra_info"]
        dtype, name, step = entry["name"].partition("[")[2].rstrip("]").split("-")
        spread = (e["swapped_p80_ms"] - e["swapped_p20_ms"]) / 2 / e["swapped_p50_ms"]
        lines.append(
            f"| {name}, {e['size']} | {step} | {dtype} | {e['reference_p50_ms']:.0f} ms "
            f"| {e['swapped_p50_ms']:.0f} ms ± {100 * spread:.0f} % | {e['speedup_p50']:.2f}× "
            f"| {e['reference_peak_mib']:.0f} → {e['swapped_peak_mib']:.0f} MiB |"
        )
    return "\n".join(lines)


def measured_on(record: dict[str, Any]) -> str:
    """Return what a record was measured on, for the line above its table."""
    if "rows" in record:
        return machine_words(record["machine"], max(row["threads"] for row in record["rows"]))
    return machine_words(record["machine_info"], record["machine_info"]["threads"])


def _what(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return widths, frames×height×width, step and dtype of a benchmark of the whole model."""
    dtype, widths, size, step = entry["name"].partition("[")[2].rstrip("]").split("-")
    return widths, size.replace("x", "×"), step, dtype


def _bytes_words(info: dict[str, Any]) -> str:
    key = "bytes_besides_convolutions"
    return f"{info[f'swapped_{key}'] / info[f'reference_{key}']:.2f}×"


def _error_words(info: dict[str, Any]) -> str:
    errors = info["relative_error"]
    return f"{errors['reference']:.1e} → {errors['swapped']:.1e}"


# (heading, what an entry must hold, its cell)
_FURTHER = (
    ("bytes besides convolutions", "swapped_bytes_besides_convolutions", _bytes_words),
    ("error against float64", "relative_error", _error_words),
)


def _stacks(record: dict[str, Any]) -> list[Stack]:
    """Return the bars of the model at its own widths."""
    stacks = []
    for entry in record["benchmarks"]:
        e, (widths, size, step, dtype) = entry["extra_info"], _what(entry)
        if widths == "2b" and "swapped_ms_by_group" in e:
            groups = (e["reference_ms_by_group"], e["swapped_ms_by_group"])
            stacks.append(Stack(f"{step} {size}, {dtype}", *groups))
    return stacks


def _plot_shares(path: Path, record: dict[str, Any]) -> None:
    plot_shares(path, _stacks(record), measured_on(record))


def conv_table(record: dict[str, Any]) -> str:
    """Return the plot and the Markdown table of the convolutions, those with the most threads."""
    rows = most_threads(record["rows"])
    names = (
        "diffusers",
        "diffusers channels_last_3d",
        "diffusers torch.compile",
        "ours",
        "ours channels_last_3d",
    )
    pairs = (("ours", names[0]), ("ours channels_last_3d", names[1]))
    lines = [
        f"![Speed of every provider against diffusers]({Path(PLOT).name})",
        "",
        f"| in×out-frames×height×width | dtype | {' | '.join(f'{n}, ms' for n in names)} "
        "| speedup | in channels_last_3d | % of float32's limit |",
        "|---" * (len(names) + 5) + "|",
    ]
    for row in rows:
        providers = row["providers"]
        times = (f"{providers[n]['p50_ms']:.1f}" if n in providers else "" for n in names)
        factors = (f"{row['speedup_p50'][mine][other]:.2f}×" for mine, other in pairs)
        share = max((providers[mine]["percent_of_limit"] or 0 for mine, _ in pairs), default=0)
        lines.append(
            f"| {row['workload']} | {row['dtype']} | {' | '.join(times)} | {' | '.join(factors)} "
            f"| {f'{share:.0f}' if share else ''} |"
        )
    judged = [row for row in rows if row["workload"] in GATED] or rows
    for dtype in dict.fromkeys(row["dtype"] for row in judged):
        means = (
            geometric_mean(row["speedup_p50"][mine][other] for row in judged if row["dtype"] == dtype)
            for mine, other in pairs
        )
        count = sum(row["dtype"] == dtype for row in judged)
        blanks = " |" * len(names)
        bold = " | ".join(f"**{mean:.2f}×**" for mean in means)
        lines.append(f"| geometric mean of {count} | {dtype} |{blanks} {bold} | |")
    return "\n".join(lines)


def pad_table(record: dict[str, Any]) -> str:
    """Return the Markdown table of the paddings, those with the most threads."""
    lines = [
        "| channels-frames×height×width | dtype | torch.cat | ours | bytes | time |",
        "|---|---|---|---|---|---|",
    ]
    for row in most_threads(record["rows"]):
        cat, ours = row["providers"]["torch.cat"], row["providers"]["ours"]
        channels, _, size = row["workload"].partition("x")[0], *row["workload"].partition("-")[1:]
        lines.append(
            f"| {channels}-{size} | {row['dtype']} "
            f"| {cat['p50_ms']:.2f} ms, {cat['bytes'] / 1e6:.1f} MB "
            f"| {ours['p50_ms']:.2f} ms, {ours['bytes'] / 1e6:.1f} MB "
            f"| {row['bytes_ratio']:.1f}× fewer | {row['speedup_p50']['ours']['torch.cat']:.1f}× faster |"
        )
    return "\n".join(lines)


def module_table(record: dict[str, Any]) -> str:
    """Return the Markdown table of norms or upsamplers, those with the most threads."""
    rows = most_threads(record["rows"])
    names = list(dict.fromkeys(name for row in rows for name in row["providers"]))
    ours = [name for name in OURS if name in names]
    headings = ["op", "workload", "dtype", *(f"{name}, ms" for name in names)]
    headings += [name.replace("ours", "speedup", 1) for name in ours] + ["bytes"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        providers, faster = row["providers"], row["speedup_p50"]
        cells = [f"`{row['op']}`", row["workload"], row["dtype"]]
        cells += [_time_words(providers[name]) if name in providers else "" for name in names]
        cells += [f"{faster[name]['diffusers']:.2f}×" if name in faster else "" for name in ours]
        lines.append(f"| {' | '.join(cells)} | {row['bytes_ratio']:.1f}× fewer |")
    return "\n".join(lines)


def _time_words(provider: dict[str, Any]) -> str:
    """Return the median and how far the middle three fifths of the runs scatter."""
    spread = (provider["p80_ms"] - provider["p20_ms"]) / 2 / provider["p50_ms"]
    return f"{provider['p50_ms']:.2f} ± {100 * spread:.0f} %"


def summary_table(records: dict[str, dict[str, Any]]) -> str:
    """Return the README's Markdown table: a few rows of several records, each with a link to its record."""
    lines = [
        "| VAE, frames×height×width | CPU, threads | dtype | diffusers | ours | speedup "
        "| peak memory | record |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, benchmark, title in SUMMARY:
        machine = records[name]["machine_info"]
        e = next(b["extra_info"] for b in records[name]["benchmarks"] if b["name"] == benchmark)
        isa = machine["torch_isa"] + (" and AMX" if machine.get("amx") else "")
        lines.append(
            f"| {title} | {isa}, {machine['threads']} | {benchmark.partition('[')[2].partition('-')[0]} "
            f"| {e['reference_p50_ms'] / 1e3:.2f} s | {e['swapped_p50_ms'] / 1e3:.2f} s "
            f"| {e['speedup_p50']:.2f}× | {e['reference_peak_mib']:.0f} → {e['swapped_peak_mib']:.0f} MiB "
            f"| [{name}](benchmarks/results/{name}) |"
        )
    return "\n".join(lines)


# (record, benchmark in it, how the README calls it)
SUMMARY: tuple[tuple[str, str, str], ...] = (
    ("cpu.json", "test_vae[float32-2b-9x96x144-decode]", "CogVideoX-2b decode, 9×96×144"),
    ("cpu.json", "test_vae[bfloat16-2b-9x96x144-decode]", "the same"),
    ("cpu-amx.json", "test_vae[float32-2b-9x96x144-decode]", "the same"),
    ("cpu-amx.json", "test_vae[bfloat16-2b-9x96x144-decode]", "the same"),
    ("cpu-families.json", "test_family[float32-wan2.1-decode]", "Wan 2.1 decode, 9×96×96"),
    ("cpu-families.json", "test_family[bfloat16-wan2.1-decode]", "the same"),
    ("cpu-families.json", "test_family[float32-hunyuanvideo-decode]", "HunyuanVideo decode, 5×64×96"),
    ("cpu-families.json", "test_family[bfloat16-hunyuanvideo-decode]", "the same"),
)
SUMMARY_MARK = "bench-summary"
PAGE = "docs/measurements.md"
# (record, mark in PAGE, what is written between the marks, where a picture of the shares of time goes)
BLOCKS: tuple[tuple[str, str, Callable[..., str], str | None], ...] = (
    ("cpu.json", "bench", vae_table, "docs/cpu-vae.png"),
    ("cpu-amx.json", "bench-amx", vae_table, "docs/cpu-amx-vae.png"),
    ("cpu-families.json", "bench-families", family_table, None),
    ("cpu-conv.json", "bench-conv", conv_table, None),
    ("cpu-pad.json", "bench-pad", pad_table, None),
    ("cpu-norms.json", "bench-norms", module_table, None),
    ("cpu-upsample.json", "bench-upsample", module_table, None),
)


def put(text: str, mark: str, block: str) -> str:
    """Return the text with `block` between its marks.

    Raises:
        SystemExit: The text has no such marks.
    """
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if begin not in text or end not in text:
        sys.exit(f"there are no {begin} … {end} marks to write between")
    return f"{text.partition(begin)[0]}{begin}\n{block}\n{end}{text.partition(end)[2]}"


def main(root: Path = ROOT) -> None:
    """Replace what stands between the marks, and the plots."""
    records = {name: record for name, *_ in BLOCKS if (record := _read(root, name)) is not None}
    text = (root / PAGE).read_text(encoding="utf-8")
    for name, mark, table, shares in BLOCKS:
        if name not in records:
            continue
        record = records[name]
        block = table(record) if shares is None else table(record, shares)
        text = put(text, mark, f"{measured_on(record)}:\n\n{block}")
        if table is conv_table:
            _replace(root / PLOT, lambda temporary, record=record: plot_record(temporary, record))
        if shares is not None and _stacks(record):
            _replace(root / shares, lambda temporary, record=record: _plot_shares(temporary, record))
    _write(root / PAGE, text)
    if all(name in records for name, *_ in SUMMARY):
        readme = (root / "README.md").read_text(encoding="utf-8")
        _write(root / "README.md", put(readme, SUMMARY_MARK, summary_table(records)))


def _read(root: Path, name: str) -> dict[str, Any] | None:
    path = root / "benchmarks" / "results" / name
    if not path.exists():
        print(f"benchmarks/results/{name} is not there: its table stays as it is")
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, text: str) -> None:
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".partial-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
