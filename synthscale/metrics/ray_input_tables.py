"""Statistics of the input for the stage reduce: slices of columns, and completeness.

Reads ``manifest/`` and ``failures/`` shard by shard over Ray, only the columns needed; writes nothing.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from synthscale.metrics.slices import (
    Counts,
    Slicing,
    choose_slices,
    count_values,
    counter_of,
    keep_largest,
    value_counts,
)
from synthscale.runtime.stage_context import StageContext
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import MANIFEST_COLUMNS, REAL

_ResultColumns = Mapping[str, pa.Array]
"""Columns of a task's result, each with one element."""
_ShardFunction = Callable[[RunDirectory, Shard, pa.Table], _ResultColumns]


def slicings(context: StageContext) -> list[Slicing]:
    """Return how each column of ``metrics.slice_by``, and the label, divides the rows into slices."""
    names = list(dict.fromkeys(["label", *context.config.metrics.slice_by]))
    totals: dict[str, Counts] = {name: Counter() for name in names}
    for row in _over_manifest(context, names, _values):
        for i, name in enumerate(names):
            totals[name] = keep_largest(totals[name] + counter_of(row[f"column_{i}"].values))
    return [choose_slices(name, counts) for name, counts in totals.items()]


def _values(run: RunDirectory, shard: Shard, table: pa.Table) -> _ResultColumns:
    """Count the rows of each value: ``column_I`` is a list of (value, count), as values may be of any type."""
    counted = [value_counts(column) for column in table.columns]
    return {f"column_{i}": pa.ListArray.from_arrays([0, len(part)], part) for i, part in enumerate(counted)}


def completeness(context: StageContext) -> dict[str, dict[str, Any]]:
    """Return the counts for the completeness family, by generator; empty if it is not requested.

    Returns:
        For each generator: ``rows``; ``complete`` (readable and without nulls); ``failed`` (not readable);
        ``nulls`` by column; ``labelled`` real rows; ``seen``, those of them whose label some synthetic row has.
        Columns without any value in the whole run are ignored.
    """
    if "completeness" not in context.config.metrics.families:
        return {}
    schema = context.run.read_shard("manifest", context.shards[0]).schema
    names = ["label", *(name for name in schema.names if name not in MANIFEST_COLUMNS.names)]
    non_null = Counter[str]()
    for row in _over_manifest(context, names, _count_non_null):
        non_null += Counter(json.loads(row["counts"].as_py()))
    filled = tuple(name for name in names if non_null[name])
    totals = {name: Counter[str]() for name in (REAL, *context.generators)}
    columns = list(dict.fromkeys(["row", "generator", "label", *filled]))
    for row in _over_manifest(context, columns, partial(_count_complete, filled)):
        for name, counts in json.loads(row["counts"].as_py()).items():
            totals[name] += Counter(counts)
    real = Counter({key: n for key, n in totals.pop(REAL).items() if key.startswith("label:")})
    return {
        name: {
            **{key: counts[key] for key in ("rows", "complete", "failed")},
            "nulls": {column: counts[f"null:{column}"] for column in filled},
            "labelled": real.total(),
            "seen": sum(rows for key, rows in real.items() if counts[key]),
        }
        for name, counts in totals.items()
    }


def _count_non_null(run: RunDirectory, shard: Shard, table: pa.Table) -> _ResultColumns:
    """Count the non-null values of each column; ``counts`` is JSON."""
    counts = {name: table.num_rows - table.column(name).null_count for name in table.column_names}
    return {"counts": pa.array([json.dumps(counts)])}


def _count_complete(columns: tuple[str, ...], run: RunDirectory, shard: Shard, table: pa.Table) -> _ResultColumns:
    """Count the rows of each set as in `completeness`, and its readable rows by label (key ``label:LABEL``).

    ``counts`` is JSON: the counts by set.
    """
    set_names = np.array([name or REAL for name in table.column("generator").to_pylist()], object)
    failed = run.read_shard("failures", shard, ["row"])
    has_failed = np.isin(table.column("row").to_numpy(), failed.column("row").to_numpy())
    nulls = {name: table.column(name).is_null().to_numpy() for name in columns}
    complete = ~np.logical_or.reduce([has_failed, *nulls.values()])
    result = {}
    for name in dict.fromkeys(set_names.tolist()):
        in_set = set_names == name
        masks = {"rows": in_set, "complete": in_set & complete, "failed": in_set & has_failed}
        masks |= {f"null:{column}": in_set & null for column, null in nulls.items()}
        labels = count_values(table.column("label").filter(pa.array(in_set & ~has_failed)))
        result[name] = Counter({key: int(mask.sum()) for key, mask in masks.items()})
        result[name] += Counter({f"label:{label}": rows for label, rows in labels.items()})
    return {"counts": pa.array([json.dumps(result)])}


def _over_manifest(
    context: StageContext, columns: list[str], function: _ShardFunction
) -> Iterator[dict[str, Any]]:
    """Yield the result of ``function`` on the manifest columns of each shard, as Arrow scalars."""
    return context.map_shards(_ManifestTask(context.run, context.shards, columns, function), "reduce")


@dataclass(frozen=True)
class _ManifestTask:
    """Applies a function to the manifest of one shard; maps a batch with a shard number to its result."""

    run: RunDirectory
    shards: list[Shard]
    columns: list[str]
    function: _ShardFunction

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self.shards[batch.column("shard")[0].as_py()]
        table = self.run.read_shard("manifest", shard, self.columns)
        return pa.table({"shard": [shard.index], **self.function(self.run, shard, table)})
