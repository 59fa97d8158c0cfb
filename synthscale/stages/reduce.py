"""Reduce: all tables -> ``scores/``, ``metrics.json`` and ``metrics.parquet``, in one Ray Data pass over shards.

Every table is cut by the same row ranges, so shard i of one joins shard i of the others in one task and nothing
is shuffled. A task writes its scores and gives back sums; the driver adds them up.
"""

import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from synthscale import filesystems as fsys
from synthscale.control import CONTROL
from synthscale.errors import SchemaError
from synthscale.metrics.comparison import between
from synthscale.metrics.gates import decide
from synthscale.metrics.slices import Counts, Slicing, count, slicing
from synthscale.metrics.summary import GeneratorFigures, generator_figures, show_control
from synthscale.metrics.view import ViewSums, sum_view
from synthscale.schemas import METRICS, REAL, SCORES, Shard, conform
from synthscale.scores import score_rows
from synthscale.stages.context import Outcome, StageContext
from synthscale.stages.view_tables import read_views
from synthscale.storage import RunDirectory
from synthscale.tables import metric_lines


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what scores and metrics depend on."""
    return {
        "input": context.run.completed("classify").digest,
        "settings": context.config.result_settings("metrics"),
        "versions": {"algorithm": 3},
    }


def run(context: StageContext) -> Outcome:
    """Write scores and metrics; verify that every usable row of every view was scored once."""
    embedded = context.run.completed("embed").counts
    fits = context.run.completed("classify").info["generators"]
    views = context.run.completed("neighbors").info["views"]
    slicings = _slicings(context)
    totals = {name: ViewSums() for name in context.generators}
    for part in _reduce_shards(context, fits, views, slicings):
        for name, sums in part.items():
            totals[name] = totals[name] + sums
    for name, sums in totals.items():
        found = (int(sums.overall["real"]), int(sums.overall["synthetic"]))
        expected = (embedded["sets"][REAL]["ok"], embedded["sets"][name]["ok"])
        if found != expected:
            raise SchemaError(f"{name}: {found} real and synthetic rows were scored, {expected} are usable")
    head = context.config.classifier.head
    figures = {name: generator_figures(sums, head, fits[name], views[name]) for name, sums in totals.items()}
    _write(context, embedded, slicings, figures)
    rows = sum(sum(own.block["counts"].values()) for own in figures.values())
    return Outcome({"rows": rows})


def _write(
    context: StageContext,
    embedded: dict[str, Any],
    slicings: list[Slicing],
    figures: dict[str, GeneratorFigures],
) -> None:
    blocks = {name: own.block for name, own in figures.items()}
    notes = [text for own in slicings if (text := own.warning)]
    lines = metric_lines({name: own.lines for name, own in figures.items()})
    fsys.write_table(context.run.path("metrics.parquet"), conform(lines, METRICS, "metrics"), context.run.storage)
    metrics = {
        "schema_version": 1,
        "run_id": context.run.read_json("run.json")["run_id"],
        "counts": _counts(embedded),
        "generators": {name: {**b, "warnings": [*b["warnings"], *notes]} for name, b in blocks.items()},
        **between({name: own.figures for name, own in figures.items()}, CONTROL),
    }
    if CONTROL in blocks:
        show_control(metrics["generators"], CONTROL)
    context.run.write_json("metrics.json", {**metrics, "gates": []})


def decide_gates(context: StageContext) -> None:
    """Decide the configured gates anew: they may change without the metrics."""
    metrics = context.run.read_json("metrics.json")
    gates = decide(context.config.gates, metrics["generators"])
    if gates != metrics["gates"]:
        # The report shows them.
        context.run.forget_from("report")
        context.run.write_json("metrics.json", {**metrics, "gates": gates})


def _counts(embedded: dict[str, Any]) -> dict[str, Any]:
    def tally(names: list[str]) -> dict[str, int]:
        ok = sum(embedded["sets"][name]["ok"] for name in names)
        failed = sum(embedded["sets"][name]["failed"] for name in names)
        return {"rows": ok + failed, "ok": ok, "failed": failed}

    synthetic = [name for name in embedded["sets"] if name != REAL]
    return {
        "real": tally([REAL]),
        "synthetic": tally(synthetic),
        "generators": {name: tally([name]) for name in synthetic},
        "failures": embedded["reasons"],
    }


# What the rows are cut by.


def _slicings(context: StageContext) -> list[Slicing]:
    """Return how the columns that metrics are given by cut the rows: a pass over these columns."""
    names = list(dict.fromkeys(["label", *context.config.metrics.slice_by]))
    totals: dict[str, Counts] = {name: Counter() for name in names}
    for answer in context.on_every_shard(_CountTask(context, names), "reduce"):
        for name, found in pickle.loads(answer["counts"]).items():
            totals[name] += found
    return [slicing(name, counts) for name, counts in totals.items()]


class _CountTask:
    """Shard number -> how often each value of some columns occurs."""

    def __init__(self, context: StageContext, names: list[str]) -> None:
        self._run, self._shards, self._names = context.run, context.shards, names

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self._shards[batch.column("shard")[0].as_py()]
        table = self._run.read_shard("manifest", shard, self._names)
        found = {name: count(table.column(name)) for name in self._names}
        return pa.table({"shard": [shard.index], "counts": pa.array([pickle.dumps(found)], pa.binary())})


# The pass.


def _reduce_shards(
    context: StageContext, fits: dict[str, Any], views: dict[str, Any], slicings: list[Slicing]
) -> Iterator[dict[str, ViewSums]]:
    classified = {name: bool(info["folds"]) for name, info in fits.items()}
    # Made by a task, and read in place by those of its node: the driver holds no row.
    ids = ray.remote(_real_ids).options(num_cpus=1).remote(context.run, context.shards)
    medians = {name: view["median_distance"] for name, view in views.items()}
    task = _ReduceTask(context, classified, medians, slicings, ids)
    for answer in context.on_every_shard(task, "reduce"):
        yield pickle.loads(answer["sums"])


def _real_ids(run: RunDirectory, shards: list[Shard]) -> pa.Table:
    """Return row and id of every real row, ascending."""
    parts = []
    for shard in shards:
        table = run.read_shard("manifest", shard, ["row", "id", "generator"])
        parts.append(table.filter(pc.is_null(table.column("generator"))).select(["row", "id"]))
    return pa.concat_tables(parts).combine_chunks()


class _ReduceTask:
    """Shard number -> its rows of ``scores/``, written; gives the pickled sums of each generator."""

    def __init__(
        self,
        context: StageContext,
        classified: dict[str, bool],
        medians: dict[str, float | None],
        slicings: list[Slicing],
        ids: Any,
    ) -> None:
        self._run, self._shards = context.run, context.shards
        self._classified, self._medians, self._slicings, self._ids = classified, medians, slicings, ids

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self._shards[batch.column("shard")[0].as_py()]
        ids = ray.get(self._ids)
        sums = {}
        for name, (view, evidence) in read_views(self._run, shard, self._classified).items():
            scores = score_rows(view, ids, self._medians[name])
            if scores.num_rows:
                path = self._run.path("scores", f"generator={name}", shard.name)
                fsys.write_table(path, conform(scores, SCORES, "scores"), self._run.storage)
            sums[name] = sum_view(view, scores, evidence, self._slicings)
        return pa.table({"shard": [shard.index], "sums": pa.array([pickle.dumps(sums)], pa.binary())})
