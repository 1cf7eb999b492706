"""Writes benchmarks/README.md from all files in results: one section a benchmark, its tables, its machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOP = """# Benchmarks

Written by `benchmarks/page.py` from `benchmarks/results/*.json`; `make bench` measures everything again and rewrites it.

Ratios are what to read: both sides were measured in one run. Seconds stand beside them for orientation and belong to the
machine named below each section. Peers run with their best reasonable settings in a process of their own; one that fails, or
has no answer after 120 s, keeps its row. "SVD" is the unit of time: `numpy.linalg.svd` of a 500 x 100 matrix with one BLAS
thread, measured in turns with what it is the unit of.
"""


def markdown(table: dict[str, Any]) -> str:
    """Columns and rows (lists, or dicts by column) as a markdown table, with the notes below."""
    columns = table["columns"]
    rows = [[row.get(c, "") for c in columns] if isinstance(row, dict) else list(row) for row in table["rows"]]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} values in a table of {len(columns)} columns: {row}")
    lines = [_line(columns), _line("---" for _ in columns), *(_line(map(cell, row)) for row in rows)] if columns else []
    notes = table.get("notes") or []
    notes = [notes] if isinstance(notes, str) else notes
    return "\n".join([*lines, *(("", *(f"- {note}" for note in notes)) if notes else ())])


def cell(value: Any) -> str:
    """One value: text as it is, numbers to three digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value == int(value) and abs(value) < 1e6:
            return f"{value:.0f}"
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(str(value).replace("|", "\\|").split())


def section(name: str, result: dict[str, Any]) -> str:
    """One benchmark: its tables and the machine that it ran on; of a file without tables, where it is."""
    tables = [result] if "columns" in result else result.get("tables") or []
    parts = [f"## {result.get('title', name)}", f"`python benchmarks/{name}.py`"]
    if not tables:
        parts.append(f"Not made for this page: [results/{name}.json](results/{name}.json)")
    for table in tables:
        if table is not result:
            parts.append(f"### {table['title']}")
        parts.append(markdown(table))
    if "columns" not in result and result.get("notes"):
        parts.append("\n".join(f"- {note}" for note in result["notes"]))
    machine = result.get("machine", "")
    parts.append(f"<sub>{_words(machine)}{_busy(machine)}</sub>")
    return "\n\n".join(parts)


def page(results: Iterable[Path]) -> str:
    """Everything, in the order of the files' names."""
    sections = [section(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(results)]
    return "\n\n".join([TOP.strip(), *sections]) + "\n"


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _words(machine: Any) -> str:
    if not isinstance(machine, dict):
        return str(machine)
    return "; ".join(f"{key}: {_value(value)}" for key, value in machine.items() if value not in ({}, [], None))


def _busy(machine: Any) -> str:
    """Say so where other work was running: a load of one is half of two cores."""
    load = machine.get("load at start", 0.0) if isinstance(machine, dict) else 0.0
    return ". Measured on a busy machine: other work took part of the cores." if load >= 1 else ""


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def main() -> None:
    """Write the page."""
    out = HERE / "README.md"
    out.write_text(page((HERE / "results").glob("*.json")), encoding="utf-8")
    print(f"wrote {out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out}")


if __name__ == "__main__":
    main()
