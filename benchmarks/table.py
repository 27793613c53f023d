"""Write the README's table of figures from a committed record: python benchmarks/table.py [RECORD]."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"


def table(record: dict) -> str:
    """Return the Markdown table of a record that `make bench` wrote."""
    lines = [
        "| widths, frames×height×width | step | dtype | diffusers | swapped | speedup | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in record["benchmarks"]:
        dtype, widths, size, step = entry["name"].partition("[")[2].rstrip("]").split("-")
        e = entry["extra_info"]
        lines.append(
            f"| {widths}, {size.replace('x', '×')} | {step} | {dtype} | {e['reference_p50_ms']:.1f} ms "
            f"| {e['swapped_p50_ms']:.1f} ms | {e['speedup_p50']:.2f}× "
            f"| {e['reference_peak_mib']:.0f} → {e['swapped_peak_mib']:.0f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Replace what stands between the marks."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results" / "cpu.json"
    text = README.read_text()
    if BEGIN not in text or END not in text:
        sys.exit(f"{README.name} has no {BEGIN} … {END} marks to write between")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    temporary = README.with_suffix(".tmp")
    temporary.write_text(f"{before}{BEGIN}\n{table(json.loads(path.read_text()))}\n{END}{after}")
    os.replace(temporary, README)


if __name__ == "__main__":
    main()
