"""A part of reduce: what ``manifest/`` says of the input, in passes over the columns that are needed."""

import pickle
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from synthscale.metrics.slices import Counts, Slicing, count, slicing
from synthscale.schemas import MANIFEST_COLUMNS, REAL, Shard
from synthscale.stages.context import StageContext
from synthscale.storage import RunDirectory


def slicings(context: StageContext) -> list[Slicing]:
    """Return how the columns that metrics are given by cut the rows."""
    names = list(dict.fromkeys(["label", *context.config.metrics.slice_by]))
    totals: dict[str, Counts] = {name: Counter() for name in names}
    for answer in context.on_every_shard(_CountTask(context.run, context.shards, names), "reduce"):
        for name, found in pickle.loads(answer["counts"]).items():
            totals[name] += found
    return [slicing(name, counts) for name, counts in totals.items()]


@dataclass(frozen=True)
class _CountTask:
    """Shard number -> how often each value of some columns occurs."""

    run: RunDirectory
    shards: list[Shard]
    names: list[str]

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self.shards[batch.column("shard")[0].as_py()]
        table = self.run.read_shard("manifest", shard, self.names)
        found = {name: count(table.column(name)) for name in self.names}
        return pa.table({"shard": [shard.index], "counts": pa.array([pickle.dumps(found)], pa.binary())})


def completeness(context: StageContext) -> dict[str, dict[str, Any]]:
    """Return each generator's ``rows``, how many are ``complete`` or ``failed``, and the ``nulls`` by column.

    With them the ``labelled`` real rows, and how many of these are ``seen``: some synthetic row has their label.
    Empty where the family is not asked for. A column without any value in the whole run is not looked at.
    """
    if "completeness" not in context.config.metrics.families:
        return {}
    sets = (REAL, *context.generators)
    totals = {name: Counter[str]() for name in sets}
    filled = _filled(context)
    for answer in context.on_every_shard(_CompleteTask(context.run, context.shards, sets, filled), "reduce"):
        for name, found in pickle.loads(answer["counts"]).items():
            totals[name] += found
    real = labels_of(totals.pop(REAL))
    return {
        name: {
            **{key: found[key] for key in ("rows", "complete", "failed")},
            "nulls": {column: found[f"null:{column}"] for column in filled},
            "labelled": real.total(),
            "seen": sum(rows for label, rows in real.items() if found[f"label:{label}"]),
        }
        for name, found in totals.items()
    }


def labels_of(counts: Counter[str]) -> Counter[str]:
    """Return the usable rows by label, of what was counted of a set."""
    return Counter({key.removeprefix("label:"): n for key, n in counts.items() if key.startswith("label:")})


def _filled(context: StageContext) -> tuple[str, ...]:
    """The label and the user's columns, those that have some value."""
    schema = context.run.read_shard("manifest", context.shards[0]).schema
    names = ["label", *(name for name in schema.names if name not in MANIFEST_COLUMNS.names)]
    known = Counter[str]()
    for answer in context.on_every_shard(_KnownTask(context.run, context.shards, names), "reduce"):
        known += Counter(pickle.loads(answer["counts"]))
    return tuple(name for name in names if known[name])


@dataclass(frozen=True)
class _KnownTask:
    """Shard number -> the values of each of some columns that are not null."""

    run: RunDirectory
    shards: list[Shard]
    names: list[str]

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self.shards[batch.column("shard")[0].as_py()]
        table = self.run.read_shard("manifest", shard, self.names)
        found = {name: table.num_rows - table.column(name).null_count for name in self.names}
        return pa.table({"shard": [shard.index], "counts": pa.array([pickle.dumps(found)], pa.binary())})


@dataclass(frozen=True)
class _CompleteTask:
    """Shard number -> what `completeness` counts, of each set."""

    run: RunDirectory
    shards: list[Shard]
    sets: tuple[str, ...]
    columns: tuple[str, ...]

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self.shards[batch.column("shard")[0].as_py()]
        names = list(dict.fromkeys(["row", "generator", "label", *self.columns]))
        table = self.run.read_shard("manifest", shard, names)
        kinds = np.array([name or REAL for name in table.column("generator").to_pylist()], object)
        failed = np.isin(table.column("row").to_numpy(), self.run.read_shard("failures", shard, ["row"])["row"])
        nulls = {name: table.column(name).is_null().to_numpy() for name in self.columns}
        complete = ~np.logical_or.reduce([failed, *nulls.values()])
        found = {}
        for name in self.sets:
            own = kinds == name
            counts = {"rows": own, "complete": own & complete, "failed": own & failed}
            counts |= {f"null:{column}": own & null for column, null in nulls.items()}
            usable = table.column("label").filter(pa.array(own & ~failed))
            found[name] = Counter({key: int(chosen.sum()) for key, chosen in counts.items()})
            found[name] += Counter({f"label:{label}": n for label, n in count(usable).items()})
        return pa.table({"shard": [shard.index], "counts": pa.array([pickle.dumps(found)], pa.binary())})
