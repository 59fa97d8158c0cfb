"""Compare the results of two run directories: for a change that must not move a number.

    python -m benchmarks.same_results BEFORE AFTER [--tolerance 1e-6] [--renamed OLD=NEW ...]

Compares every Parquet table row by row, and ``metrics.json`` without run ids, times and versions. Columns other
than floating-point numbers must be equal; numbers may differ by the tolerance (0: bit for bit). Prints one line a
table and exits with 1 if anything differs.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

_IGNORED_KEYS = {"run_id", "seconds", "rows_per_s", "stages", "versions", "schema_version"}
TABLES = (
    "manifest",
    "embeddings",
    "failures",
    "neighbors",
    "nearest",
    "groups",
    "classifier",
    "predictions",
    "scores",
)


def table_of(run: Path, name: str, renamed: dict[str, str]) -> pa.Table:
    """Read a table of a run, or its file, with columns renamed."""
    path = run / name
    files = sorted(map(str, path.rglob("*.parquet"))) if path.is_dir() else [str(path)]
    table = ds.dataset(files, partitioning="hive" if name == "scores" else None).to_table()
    return table.rename_columns([renamed.get(column, column) for column in table.column_names])


def differing(one: Any, two: Any, tolerance: float, path: str = "") -> list[str]:
    """Name the places where two JSON documents or lists of values differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = (one.keys() | two.keys()) - _IGNORED_KEYS
        return [
            each
            for key in sorted(keys)
            for each in differing(one.get(key), two.get(key), tolerance, f"{path}.{key}")
        ]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [
            each
            for i, pair in enumerate(zip(one, two, strict=True))
            for each in differing(*pair, tolerance, f"{path}[{i}]")
        ]
    if isinstance(one, float) and isinstance(two, float):
        return [] if np.isclose(one, two, rtol=0, atol=tolerance, equal_nan=True) else [f"{path}: {one} and {two}"]
    return [] if one == two else [f"{path}: {one} and {two}"]


def compare(before: Path, after: Path, tolerance: float, renamed: dict[str, str]) -> dict[str, list[str]]:
    """Return for each table, and metrics.json, what differs."""
    found = {}
    for name in (*TABLES, "metrics.parquet"):
        one, two = table_of(before, name, renamed), table_of(after, name, {})
        unlike = sorted(set(one.column_names) ^ set(two.column_names))
        found[name] = [f"columns of one run alone: {', '.join(unlike)}"] if unlike else []
        for column in set(one.column_names) & set(two.column_names):
            values = one.column(column).to_pylist(), two.column(column).to_pylist()
            found[name] += differing(*values, tolerance, column)[:3]
    documents = (json.loads((run / "metrics.json").read_text()) for run in (before, after))
    found["metrics.json"] = differing(*documents, tolerance)
    return found


def main() -> int:
    """Compare two runs and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.0)
    parser.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW")
    given = parser.parse_args()
    renamed = dict(pair.split("=", 1) for pair in given.renamed)
    found = compare(given.before, given.after, given.tolerance, renamed)
    for name, places in found.items():
        print(json.dumps({"table": name, "same": not places, "differing": places[:5]}))
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
