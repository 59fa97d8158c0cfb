"""The stage reduce: joins all tables and writes ``scores/``, ``metrics.json`` and ``metrics.parquet``.

Reads ``manifest/``, ``embeddings/``, ``nearest/``, ``groups/``, ``classifier/`` and ``predictions/``. All tables
have the same shards (row ranges), so one Ray Data task joins shard i of each without a shuffle. A task writes the
shard's scores and returns sums, which the driver adds up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from synthscale.errors import SchemaError
from synthscale.generator_names import partition
from synthscale.metrics.comparison import comparison_blocks
from synthscale.metrics.gates import decide
from synthscale.metrics.long_form import metric_lines
from synthscale.metrics.ray_input_tables import completeness, slicings
from synthscale.metrics.ray_vector_pass import vector_families
from synthscale.metrics.ray_view_tables import ViewReader, real_lookup
from synthscale.metrics.scores import score_rows
from synthscale.metrics.slices import Slicing
from synthscale.metrics.summary import GeneratorMetrics, ViewFacts, add_control_values, generator_metrics
from synthscale.metrics.view_sums import ViewSums, sum_view
from synthscale.runtime.stage_context import StageContext, StageOutcome
from synthscale.statistics.size_matching import matched_sizes
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import Shard
from synthscale.tables.plain_data import from_arrow, to_arrow
from synthscale.tables.schemas import CONTROL, METRICS, REAL, SCHEMA_VERSION, SCORES, conform

ALGORITHM_VERSION = 5
"""Part of the fingerprint. Raise it when the same tables give other scores or another metrics.json."""


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return the inputs, settings and versions that determine scores and metrics."""
    return {
        "input": context.run.completed("classify").digest,
        "settings": context.config.result_settings("metrics"),
        "versions": {"algorithm": ALGORITHM_VERSION},
    }


def run(context: StageContext) -> StageOutcome:
    """Write scores and metrics; raise SchemaError unless every usable row of every view was scored once."""
    embedded = context.run.completed("embed").counts
    fits = context.run.completed("classify").info["generators"]
    views = context.run.completed("neighbors").info["views"]
    column_slicings = slicings(context)
    totals = {name: ViewSums() for name in context.generators}
    for part in _reduce_shards(context, fits, views, column_slicings):
        for name, sums in part.items():
            totals[name] = totals[name] + sums
    for name, sums in totals.items():
        scored = (int(sums.overall["real"]), int(sums.overall["synthetic"]))
        usable = (embedded["sets"][REAL]["ok"], embedded["sets"][name]["ok"])
        if scored != usable:
            raise SchemaError(
                f"{name}: {scored[0]:,} real and {scored[1]:,} synthetic rows were scored, but {usable[0]:,} and "
                f"{usable[1]:,} are usable; rerun with --redo-from neighbors"
            )
        if sums.grouped != views[name]["rows_in_groups"]:
            raise SchemaError(
                f"{name}: groups/ has {sums.grouped} rows, but {views[name]['rows_in_groups']} were written; "
                "rerun with --redo-from neighbors"
            )
    families, head = context.config.metrics.families, context.config.classifier.head
    from_vectors = vector_families(context, {name: counts["ok"] for name, counts in embedded["sets"].items()})
    complete = completeness(context)
    sizes = matched_sizes({name: embedded["sets"][name]["ok"] for name in context.generators})
    figures = {
        name: generator_metrics(
            sums,
            ViewFacts(
                head,
                fits[name],
                views[name],
                families,
                from_vectors[name],
                complete.get(name, {}),
                sizes.get(name),
            ),
        )
        for name, sums in totals.items()
    }
    _write(context, embedded, column_slicings, figures)
    rows = sum(sum(generator.block["counts"].values()) for generator in figures.values())
    return StageOutcome({"rows": rows})


def _write(
    context: StageContext,
    embedded: dict[str, Any],
    column_slicings: list[Slicing],
    figures: dict[str, GeneratorMetrics],
) -> None:
    """Write ``metrics.parquet`` and ``metrics.json``, the latter without gates."""
    blocks = {name: generator.block for name, generator in figures.items()}
    control = CONTROL if context.config.control else None
    slice_warnings = [text for slicing in column_slicings if (text := slicing.warning)]
    metrics = {
        "schema_version": SCHEMA_VERSION,
        "run_id": context.run.read_json("run.json")["run_id"],
        "counts": _counts(embedded),
        "generators": {name: {**b, "warnings": [*b["warnings"], *slice_warnings]} for name, b in blocks.items()},
        **comparison_blocks(
            {name: generator.whole for name, generator in figures.items()},
            {name: generator.at_smallest for name, generator in figures.items()},
            control,
        ),
    }
    if control is not None:
        add_control_values(metrics["generators"], CONTROL)
    lines = metric_lines({name: generator.lines for name, generator in figures.items()}, metrics["generators"])
    fsys.write_table(context.run.path("metrics.parquet"), conform(lines, METRICS, "metrics"), context.run.storage)
    context.run.write_json("metrics.json", {**metrics, "gates": []})


def decide_gates(context: StageContext) -> bool:
    """Evaluate the configured gates and update metrics.json. Return True if the decisions changed.

    Gates are not part of the fingerprint, so they are evaluated again even if the stage itself is skipped.
    """
    metrics = context.run.read_json("metrics.json")
    gates = decide(context.config.gates, metrics["generators"], CONTROL if context.config.control else None)
    if gates == metrics["gates"]:
        return False
    context.run.write_json("metrics.json", {**metrics, "gates": gates})
    return True


def _counts(embedded: dict[str, Any]) -> dict[str, Any]:
    """Return the block ``counts`` of metrics.json from the counts of the stage embed."""

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


def _reduce_shards(
    context: StageContext, fits: dict[str, Any], views: dict[str, Any], column_slicings: list[Slicing]
) -> Iterator[dict[str, ViewSums]]:
    """Score every shard in Ray Data tasks; yield the sums of each shard by generator."""
    classified = {name: bool(info["folds"]) for name, info in fits.items()}
    medians = {name: view["median_distance"] for name, view in views.items()}
    # Built in a task and shared through the object store, so that the driver holds no rows.
    lookup = ray.remote(real_lookup).options(num_cpus=1).remote(context.run, context.shards)
    embedded = context.run.completed("embed").counts["sets"]
    rows = {name: counts["ok"] for name, counts in embedded.items()}
    reader = ViewReader(context.run, classified, context.config.metrics.families, rows)
    task = _ReduceTask(reader, context.shards, medians, column_slicings, lookup)
    for row in context.map_shards(task, "reduce"):
        yield from_arrow(dict[str, ViewSums], row["sums"])


@dataclass(frozen=True)
class _ReduceTask:
    """Writes the scores of one shard; maps a batch with a shard number to the sums by generator."""

    reader: ViewReader
    shards: list[Shard]
    medians: dict[str, float | None]
    slicings: list[Slicing]
    lookup: Any

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self.shards[batch.column("shard")[0].as_py()]
        real, run = ray.get(self.lookup), self.reader.run
        sums = {}
        for name, (view, evidence) in self.reader.read(shard, real).items():
            scores = score_rows(view, real, self.medians[name])
            if scores.num_rows:
                path = run.path("scores", partition(name), shard.name)
                fsys.write_table(path, conform(scores, SCORES, "scores"), run.storage)
            sums[name] = sum_view(view, scores, evidence, self.slicings)
        return pa.table({"shard": [shard.index], "sums": to_arrow(sums)})
