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
import ray.data
from numpy.typing import NDArray

from synthscale import filesystems as fsys
from synthscale.classifier import log_prior
from synthscale.errors import SchemaError
from synthscale.metrics.summary import ViewSums, generator_block, sum_view
from synthscale.schemas import REAL, SCORES, Shard, conform
from synthscale.scores import ViewRows, score_rows
from synthscale.stages.context import Outcome, StageContext
from synthscale.storage import RunDirectory

_MANIFEST_NAMES = ("real_or_synthetic", "generator")


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what scores and metrics depend on."""
    return {"input": context.run.completed("classify").digest, "versions": {"algorithm": 1}}


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
    ids = context.read_all("manifest", ["id"])
    task = _ReduceTask(context.run, context.shards, classify, views, ray.put(ids.column("id").combine_chunks()))
    items = ray.data.from_items(
        [{"shard": shard.index} for shard in context.shards], override_num_blocks=len(context.shards)
    )
    answers = items.map_batches(task, batch_size=1, batch_format="pyarrow").take_all()
    # In shard order, so that sums of floats do not depend on which task came first.
    for answer in sorted(answers, key=lambda row: row["shard"]):
        yield pickle.loads(answer["sums"])


class _ReduceTask:
    """Shard number -> its rows of ``scores/``, written; gives the pickled sums of each generator."""

    def __init__(
        self,
        run: RunDirectory,
        shards: list[Shard],
        classify: dict[str, Any],
        views: dict[str, Any],
        ids: Any,
    ) -> None:
        self._run, self._shards, self._classify, self._views, self._ids = run, shards, classify, views, ids

    def __call__(self, batch: pa.Table) -> pa.Table:
        shard = self._shards[batch.column("shard")[0].as_py()]
        ids = ray.get(self._ids)
        sums = {}
        for name, (view, fold) in read_views(self._run, shard, list(self._views)).items():
            scores = score_rows(view, ids, self._views[name]["median_distance"])
            if scores.num_rows:
                path = self._run.path("scores", f"generator={name}", shard.name)
                fsys.write_table(path, conform(scores, SCORES, "scores"), self._run.storage)
            sums[name] = sum_view(view, scores, log_prior(self._classify[name]["training"], fold))
        return pa.table({"shard": [shard.index], "sums": [pickle.dumps(sums)]})


def read_views(
    run: RunDirectory, shard: Shard, generators: list[str]
) -> dict[str, tuple[ViewRows, NDArray[np.int64]]]:
    """Join the tables of one shard, for each generator's view, with the fold of each row."""
    manifest = run.read_shard("manifest", shard)
    for name in _MANIFEST_NAMES:
        at = manifest.column_names.index(name)
        manifest = manifest.set_column(at, name, manifest.column(name).cast(pa.string()))
    parts = {table: run.read_shard(table, shard) for table in ("nearest", "groups", "predictions")}
    joined = {}
    for name in generators:
        own = {table: t.filter(pc.equal(t.column("generator"), name)) for table, t in parts.items()}
        rows = own["nearest"].column("row").to_numpy()
        logit, fold = np.full(len(rows), np.nan), np.zeros(len(rows), np.int64)
        predicted = own["predictions"]
        if predicted.num_rows:
            if not np.array_equal(predicted.column("row").to_numpy(), rows):
                raise SchemaError(f"{name}: predictions and nearest do not align in {shard.name}")
            logit = predicted.column("logit_synthetic").to_numpy().astype(np.float64)
            fold = predicted.column("fold").to_numpy().astype(np.int64)
        chosen = manifest.take(pa.array(rows - shard.start))
        # The generator stands in the partition's path.
        view = ViewRows(chosen.drop_columns(["generator"]), own["nearest"], own["groups"], logit)
        joined[name] = (view, fold)
    return joined
