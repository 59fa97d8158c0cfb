"""A part of reduce: what ``manifest/`` says of the input, in passes over the columns that are needed."""

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from synthscale.metrics.slices import Counts, Slicing, choose_slices, count_values, keep_largest
from synthscale.runtime.stage_context import StageContext
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import MANIFEST_COLUMNS, REAL


def slicings(context: StageContext) -> list[Slicing]:
    """Return how the columns that metrics are given by cut the rows."""
    names = list(dict.fromkeys(["label", *context.config.metrics.slice_by]))
    totals: dict[str, Counts] = {name: Counter() for name in names}
    for found in _over_manifest(context, names, _values):
        for name, counts in found.items():
            totals[name] = keep_largest(totals[name] + counts)
    return [choose_slices(name, counts) for name, counts in totals.items()]


def _values(run: RunDirectory, shard: Shard, table: pa.Table) -> dict[str, Counts]:
    """Count the values of each column."""
    return {name: count_values(table.column(name)) for name in table.column_names}


def completeness(context: StageContext) -> dict[str, dict[str, Any]]:
    """Return each generator's ``rows``, how many are ``complete`` or ``failed``, and the ``nulls`` by column.

    With them the ``labelled`` real rows, and how many of these are ``seen``: some synthetic row has their label.
    Empty where the family is not asked for. A column without any value in the whole run is not looked at.
    """
    if "completeness" not in context.config.metrics.families:
        return {}
    schema = context.run.read_shard("manifest", context.shards[0]).schema
    names = ["label", *(name for name in schema.names if name not in MANIFEST_COLUMNS.names)]
    known = Counter[str]()
    for found in _over_manifest(context, names, _known):
        known += found
    filled = tuple(name for name in names if known[name])
    totals = {name: Counter[str]() for name in (REAL, *context.generators)}
    columns = list(dict.fromkeys(["row", "generator", "label", *filled]))
    for found in _over_manifest(context, columns, partial(_complete, filled)):
        for name, counts in found.items():
            totals[name] += counts
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


def _known(run: RunDirectory, shard: Shard, table: pa.Table) -> Counter[str]:
    """Count the values of each column that are not null."""
    return Counter({name: table.num_rows - table.column(name).null_count for name in table.column_names})


def _complete(
    columns: tuple[str, ...], run: RunDirectory, shard: Shard, table: pa.Table
) -> dict[str, Counter[str]]:
    """Count for each set what `completeness` returns, and its usable rows by label."""
    kinds = np.array([name or REAL for name in table.column("generator").to_pylist()], object)
    failed = run.read_shard("failures", shard, ["row"])
    has_failed = np.isin(table.column("row").to_numpy(), failed.column("row").to_numpy())
    nulls = {name: table.column(name).is_null().to_numpy() for name in columns}
    complete = ~np.logical_or.reduce([has_failed, *nulls.values()])
    found = {}
    for name in dict.fromkeys(kinds.tolist()):
        own = kinds == name
        counts = {"rows": own, "complete": own & complete, "failed": own & has_failed}
        counts |= {f"null:{column}": own & null for column, null in nulls.items()}
        labels = count_values(table.column("label").filter(pa.array(own & ~has_failed)))
        found[name] = Counter({key: int(chosen.sum()) for key, chosen in counts.items()})
        found[name] += Counter({f"label:{label}": rows for label, rows in labels.items()})
    return found


_Work = Callable[[RunDirectory, Shard, pa.Table], Any]


def _over_manifest(context: StageContext, columns: list[str], work: _Work) -> Iterator[Any]:
    """Yield what ``work`` makes of each shard's columns of the manifest."""
    for answer in context.on_every_shard(_Task(context.run, context.shards, columns, work), "reduce"):
        yield pickle.loads(answer["found"])


@dataclass(frozen=True)
class _Task:
    """Shard number -> what a function makes of its manifest."""

    run: RunDirectory
    shards: list[Shard]
    columns: list[str]
    work: _Work

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self.shards[batch.column("shard")[0].as_py()]
        table = self.run.read_shard("manifest", shard, self.columns)
        found = self.work(self.run, shard, table)
        return pa.table({"shard": [shard.index], "found": pa.array([pickle.dumps(found)], pa.binary())})
