"""Reduce: all tables -> ``scores/`` and ``metrics.json``, in one Ray Data pass over shards.

Every table is cut by the same row ranges, so shard i of one joins shard i of the others in one task and nothing
is shuffled. A task writes its scores and gives back sums; the driver adds them up.
"""

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from synthscale import filesystems as fsys
from synthscale.errors import SchemaError
from synthscale.facts import COLUMNS, bytes_per_pixel
from synthscale.metrics.evidence import Evidence
from synthscale.metrics.summary import ViewSums, generator_block, sum_view
from synthscale.schemas import DIRECTIONS, REAL, SCORES, Shard, conform
from synthscale.scores import ViewRows, score_rows
from synthscale.stages.context import Outcome, StageContext
from synthscale.storage import RunDirectory

_MANIFEST_NAMES = ("real_or_synthetic", "generator")


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what scores and metrics depend on."""
    return {"input": context.run.completed("classify").digest, "versions": {"algorithm": 2}}


def run(context: StageContext) -> Outcome:
    """Write scores and metrics; verify that every usable row of every view was scored once."""
    embedded = context.run.completed("embed").counts
    classify = context.run.completed("classify").info["generators"]
    views = context.run.completed("neighbors").info["views"]
    totals = {name: ViewSums() for name in context.generators}
    for part in _reduce_shards(context, classify, views):
        for name, sums in part.items():
            totals[name] = totals[name] + sums
    for name, sums in totals.items():
        found = (int(sums.overall.real), int(sums.overall.synthetic))
        expected = (embedded["sets"][REAL]["ok"], embedded["sets"][name]["ok"])
        if found != expected:
            raise SchemaError(f"{name}: {found} real and synthetic rows were scored, {expected} are usable")
    head = context.config.classifier.head
    blocks = {name: generator_block(totals[name], head, classify[name], views[name]) for name in totals}
    metrics = {
        "schema_version": 1,
        "run_id": context.run.read_json("run.json")["run_id"],
        "counts": _counts(embedded),
        "generators": blocks,
        "gates": [],
    }
    context.run.write_json("metrics.json", metrics)
    return Outcome({"rows": sum(b["counts"]["real"] + b["counts"]["synthetic"] for b in blocks.values())})


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


def _reduce_shards(
    context: StageContext, classify: dict[str, Any], views: dict[str, Any]
) -> Iterator[dict[str, ViewSums]]:
    classified = {name: bool(info["folds"]) for name, info in classify.items()}
    ids = context.read_all("manifest", ["id"])
    task = _ReduceTask(context, classified, views, ray.put(ids.column("id").combine_chunks()))
    for answer in context.on_every_shard(task, "reduce"):
        yield pickle.loads(answer["sums"])


class _ReduceTask:
    """Shard number -> its rows of ``scores/``, written; gives the pickled sums of each generator."""

    def __init__(
        self, context: StageContext, classified: dict[str, bool], views: dict[str, Any], ids: Any
    ) -> None:
        self._run, self._shards = context.run, context.shards
        self._classified, self._views, self._ids = classified, views, ids

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self._shards[batch.column("shard")[0].as_py()]
        ids = ray.get(self._ids)
        sums = {}
        for name, (view, evidence) in read_views(self._run, shard, self._classified).items():
            scores = score_rows(view, ids, self._views[name]["median_distance"])
            if scores.num_rows:
                path = self._run.path("scores", f"generator={name}", shard.name)
                fsys.write_table(path, conform(scores, SCORES, "scores"), self._run.storage)
            sums[name] = sum_view(view, scores, evidence)
        return pa.table({"shard": [shard.index], "sums": [pickle.dumps(sums)]})


def read_views(
    run: RunDirectory, shard: Shard, classified: dict[str, bool]
) -> dict[str, tuple[ViewRows, Evidence]]:
    """Join the tables of one shard for each generator's view; ``classified`` tells which have predictions."""
    manifest = run.read_shard("manifest", shard)
    for name in _MANIFEST_NAMES:
        at = manifest.column_names.index(name)
        manifest = manifest.set_column(at, name, manifest.column(name).cast(pa.string()))
    embedded = run.read_shard("embeddings", shard, ["row", *COLUMNS])
    parts = {table: run.read_shard(table, shard) for table in ("nearest", "groups", "classifier", "predictions")}
    joined = {}
    for name in classified:
        own = {table: t.filter(pc.equal(t.column("generator"), name)) for table, t in parts.items()}
        rows = own["nearest"].column("row").to_numpy()
        # Where no classifier can be fitted there are no predictions.
        for table in ("classifier", "predictions") if classified[name] else ("classifier",):
            if not np.array_equal(own[table].column("row").to_numpy(), rows):
                raise SchemaError(
                    f"{name}: {table} and nearest do not align in {shard.name}; repeat with --redo-from classify"
                )
        evidence = _evidence(own["classifier"], own["predictions"], embedded, rows)
        chosen = manifest.take(pa.array(rows - shard.start))
        # The generator stands in the partition's path.
        logit = _numbers(own["predictions"], "logit_synthetic", len(rows))
        joined[name] = (
            ViewRows(chosen.drop_columns(["generator"]), own["nearest"], own["groups"], logit),
            evidence,
        )
    return joined


def _numbers(table: pa.Table, name: str, n: int) -> NDArray[np.float64]:
    """A column as float64, NaN where null; all NaN where the table is empty."""
    if not table.num_rows:
        return np.full(n, np.nan)
    result: NDArray[np.float64] = table.column(name).cast(pa.float64()).fill_null(np.nan).to_numpy()
    return result


def _evidence(folds: pa.Table, predictions: pa.Table, embedded: pa.Table, rows: NDArray[np.int64]) -> Evidence:
    n = len(rows)
    along = np.full((n, DIRECTIONS), np.nan)
    if predictions.num_rows:
        flat = predictions.column("along").combine_chunks().flatten()
        along = flat.cast(pa.float64()).fill_null(np.nan).to_numpy().reshape(n, DIRECTIONS)
    files = embedded.take(pa.array(np.searchsorted(embedded.column("row").to_numpy(), rows)))
    return Evidence(
        log_prior=folds.column("log_prior").to_numpy(),
        group_key=folds.column("group_key").to_numpy(),
        logit_file_facts=_numbers(predictions, "logit_file_facts", n),
        bytes_per_pixel=bytes_per_pixel(files),
        along=along,
    )
