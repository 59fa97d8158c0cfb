"""A part of reduce: one shard's tables, joined for each generator's view."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.errors import SchemaError
from synthscale.facts import COLUMNS, bytes_per_pixel
from synthscale.metrics.evidence import Evidence
from synthscale.schemas import DIRECTIONS, Shard
from synthscale.scores import ViewRows
from synthscale.storage import RunDirectory
from synthscale.tables import of_lists

_MANIFEST_NAMES = ("real_or_synthetic", "generator")


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
            _check_alignment(name, table, shard, rows, own[table].column("row").to_numpy())
        evidence = _evidence(own["classifier"], own["predictions"], embedded, rows)
        chosen = manifest.take(pa.array(rows - shard.start))
        # The generator stands in the partition's path.
        logit = _numbers(own["predictions"], "logit_synthetic", len(rows))
        joined[name] = (
            ViewRows(chosen.drop_columns(["generator"]), own["nearest"], own["groups"], logit),
            evidence,
        )
    return joined


def _check_alignment(
    name: str, table: str, shard: Shard, rows: NDArray[np.int64], found: NDArray[np.int64]
) -> None:
    if np.array_equal(found, rows):
        return
    missing, foreign = len(np.setdiff1d(rows, found)), len(np.setdiff1d(found, rows))
    doubled = len(found) - len(np.unique(found))
    stage = "classify" if np.array_equal(rows, np.unique(rows)) else "neighbors"
    raise SchemaError(
        f"{name}: {table} and nearest do not align in {shard.name}: {len(found)} rows and {len(rows)}; {missing} "
        f"missing, {foreign} more than there should be, {doubled} doubled; repeat with --redo-from {stage}"
    )


def _numbers(table: pa.Table, name: str, n: int) -> NDArray[np.float64]:
    """A column as float64, NaN where null; all NaN where the table is empty."""
    if not table.num_rows:
        return np.full(n, np.nan)
    result: NDArray[np.float64] = table.column(name).cast(pa.float64()).fill_null(np.nan).to_numpy()
    return result


def _evidence(folds: pa.Table, predictions: pa.Table, embedded: pa.Table, rows: NDArray[np.int64]) -> Evidence:
    n = len(rows)
    along, without, fold = np.full((n, DIRECTIONS), np.nan), None, np.empty(0, np.int8)
    if predictions.num_rows:
        along, fold = of_lists(predictions.column("along")), predictions.column("fold").to_numpy()
        without = of_lists(predictions.column("logit_without"))
    files = embedded.take(pa.array(np.searchsorted(embedded.column("row").to_numpy(), rows)))
    return Evidence(
        log_prior=folds.column("log_prior").to_numpy(),
        group_key=folds.column("group_key").to_numpy(),
        logit_file_facts=_numbers(predictions, "logit_file_facts", n),
        bytes_per_pixel=bytes_per_pixel(files),
        along=along,
        fold=fold,
        # Nothing was refitted where not one is known.
        logit_without=without if without is not None and np.isfinite(without).any() else None,
    )
