"""Reduce: all tables -> ``scores/``, ``metrics.json`` and ``metrics.parquet``, in one Ray Data pass over shards.

Every table is cut by the same row ranges, so shard i of one joins shard i of the others in one task and nothing
is shuffled. A task writes its scores and gives back sums; the driver adds them up.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from synthscale.errors import SchemaError
from synthscale.metrics.comparison import between
from synthscale.metrics.gates import decide
from synthscale.metrics.long_form import metric_lines
from synthscale.metrics.ray_input_tables import completeness, slicings
from synthscale.metrics.ray_vector_pass import vector_families
from synthscale.metrics.ray_view_tables import ViewReader, real_lookup
from synthscale.metrics.scores import score_rows
from synthscale.metrics.slices import Slicing
from synthscale.metrics.summary import GeneratorFigures, ViewFacts, generator_figures, show_control
from synthscale.metrics.view_sums import ViewSums, sum_view
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.statistics.size_matching import matched_sizes
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import CONTROL, METRICS, REAL, SCORES, conform


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what scores and metrics depend on."""
    return {
        "input": context.run.completed("classify").digest,
        "settings": context.config.result_settings("metrics"),
        "versions": {"algorithm": 3},
    }


def run(context: StageContext) -> StageOutcome:
    """Write scores and metrics; verify that every usable row of every view was scored once."""
    embedded = context.run.completed("embed").counts
    fits = context.run.completed("classify").info["generators"]
    views = context.run.completed("neighbors").info["views"]
    cuts = slicings(context)
    totals = {name: ViewSums() for name in context.generators}
    for part in _reduce_shards(context, fits, views, cuts):
        for name, sums in part.items():
            totals[name] = totals[name] + sums
    for name, sums in totals.items():
        found = (int(sums.overall["real"]), int(sums.overall["synthetic"]))
        expected = (embedded["sets"][REAL]["ok"], embedded["sets"][name]["ok"])
        if found != expected:
            raise SchemaError(f"{name}: {found} real and synthetic rows were scored, {expected} are usable")
        if sums.grouped != views[name]["rows_in_groups"]:
            raise SchemaError(
                f"{name}: groups/ has {sums.grouped} lines, {views[name]['rows_in_groups']} were written; "
                "repeat with --redo-from neighbors"
            )
    families, head = context.config.metrics.families, context.config.classifier.head
    of_vectors = vector_families(context, {name: own["ok"] for name, own in embedded["sets"].items()})
    complete = completeness(context)
    sizes = matched_sizes({name: embedded["sets"][name]["ok"] for name in context.generators})
    figures = {
        name: generator_figures(
            sums,
            ViewFacts(
                head, fits[name], views[name], families, of_vectors[name], complete.get(name, {}), sizes.get(name)
            ),
        )
        for name, sums in totals.items()
    }
    _write(context, embedded, cuts, figures)
    rows = sum(sum(own.block["counts"].values()) for own in figures.values())
    return StageOutcome({"rows": rows})


def _write(
    context: StageContext,
    embedded: dict[str, Any],
    cuts: list[Slicing],
    figures: dict[str, GeneratorFigures],
) -> None:
    blocks = {name: own.block for name, own in figures.items()}
    control = CONTROL if context.config.control else None
    notes = [text for own in cuts if (text := own.warning)]
    lines = metric_lines({name: own.lines for name, own in figures.items()})
    fsys.write_table(context.run.path("metrics.parquet"), conform(lines, METRICS, "metrics"), context.run.storage)
    metrics = {
        "schema_version": 1,
        "run_id": context.run.read_json("run.json")["run_id"],
        "counts": _counts(embedded),
        "generators": {name: {**b, "warnings": [*b["warnings"], *notes]} for name, b in blocks.items()},
        **between(
            {name: own.whole for name, own in figures.items()},
            {name: own.at_smallest for name, own in figures.items()},
            control,
        ),
    }
    if control is not None:
        show_control(metrics["generators"], CONTROL)
    context.run.write_json("metrics.json", {**metrics, "gates": []})


def decide_gates(context: StageContext) -> bool:
    """Decide the configured gates anew: they may change without the metrics. Tell whether they did."""
    metrics = context.run.read_json("metrics.json")
    gates = decide(context.config.gates, metrics["generators"], CONTROL if context.config.control else None)
    if gates == metrics["gates"]:
        return False
    context.run.write_json("metrics.json", {**metrics, "gates": gates})
    return True


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


# The pass.


def _reduce_shards(
    context: StageContext, fits: dict[str, Any], views: dict[str, Any], cuts: list[Slicing]
) -> Iterator[dict[str, ViewSums]]:
    classified = {name: bool(info["folds"]) for name, info in fits.items()}
    medians = {name: view["median_distance"] for name, view in views.items()}
    # Made by a task, and read in place by those of its node: the driver holds no row.
    lookup = ray.remote(real_lookup).options(num_cpus=1).remote(context.run, context.shards)
    embedded = context.run.completed("embed").counts["sets"]
    rows = {name: embedded[name]["ok"] for name in context.generators}
    reader = ViewReader(context.run, classified, context.config.metrics.families, rows)
    for answer in context.on_every_shard(_ReduceTask(reader, context.shards, medians, cuts, lookup), "reduce"):
        yield pickle.loads(answer["sums"])


@dataclass(frozen=True)
class _ReduceTask:
    """Shard number -> its rows of ``scores/``, written; gives the pickled sums of each generator."""

    reader: ViewReader
    shards: list[Shard]
    medians: dict[str, float | None]
    cuts: list[Slicing]
    lookup: Any

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self.shards[batch.column("shard")[0].as_py()]
        real, run = ray.get(self.lookup), self.reader.run
        sums = {}
        for name, (view, evidence) in self.reader.read(shard, real).items():
            scores = score_rows(view, real, self.medians[name])
            if scores.num_rows:
                path = run.path("scores", f"generator={name}", shard.name)
                fsys.write_table(path, conform(scores, SCORES, "scores"), run.storage)
            sums[name] = sum_view(view, scores, evidence, self.cuts)
        return pa.table({"shard": [shard.index], "sums": pa.array([pickle.dumps(sums)], pa.binary())})
