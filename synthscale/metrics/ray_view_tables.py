"""Joins the tables of one shard into each generator's view, for the stage reduce.

Reads ``manifest/``, ``embeddings/``, ``nearest/``, ``groups/``, ``classifier/`` and ``predictions/``; writes
nothing. Raises SchemaError where the tables do not contain the same rows.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.embed.file_metadata import COLUMNS, STATISTICS_COLUMNS, bytes_per_pixel, statistics_columns
from synthscale.errors import SchemaError
from synthscale.metrics.evidence import RowEvidence, row_evidence
from synthscale.metrics.scores import ViewRows
from synthscale.statistics.size_matching import RowHashes, matched_sizes
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.columns import require_embedded, rows_of_generator, to_float64, to_matrix
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import DIRECTIONS, DISTINCT_REAL, REAL

_MANIFEST_NAMES = ("real_or_synthetic", "generator")


def real_lookup(run: RunDirectory, shards: list[Shard]) -> pa.Table:
    """Return ``row`` (ascending), ``id`` and ``distinct_real_distance`` of every usable real row."""
    parts = []
    for shard in shards:
        nearest = run.read_shard("nearest", shard, ["generator", "row", DISTINCT_REAL])
        manifest = run.read_shard("manifest", shard, ["id", "generator"])
        # Distances among real rows are the same in every view, so the first view suffices.
        nearest = rows_of_generator(nearest, _first_generator(nearest))
        at = nearest.column("row").to_numpy() - shard.start
        is_real = np.asarray(manifest.column("generator").is_null())[at]
        columns = {
            "row": nearest.column("row").to_numpy()[is_real],
            "id": manifest.column("id").take(pa.array(at[is_real])),
            DISTINCT_REAL: to_float64(nearest.column(DISTINCT_REAL), np.inf)[is_real],
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts).combine_chunks()


def _first_generator(nearest: pa.Table) -> pa.Scalar:
    names = pc.unique(nearest.column("generator").cast(pa.string()))
    return names[0] if len(names) else pa.scalar("")


@dataclass(frozen=True)
class ViewReader:
    """Joins the tables of a shard.

    Attributes:
        classified: for each generator, whether it has predictions.
        families: requested metric families.
        rows: number of rows of each set.
    """

    run: RunDirectory
    classified: dict[str, bool]
    families: tuple[str, ...] = ()
    rows: dict[str, int] = field(default_factory=dict)

    def read(self, shard: Shard, real: pa.Table) -> dict[str, tuple[ViewRows, RowEvidence]]:
        """Return the rows of a shard in each generator's view; ``real`` is the table of `real_lookup`."""
        manifest = self.run.read_shard("manifest", shard)
        for name in _MANIFEST_NAMES:
            at = manifest.column_names.index(name)
            manifest = manifest.set_column(at, name, manifest.column(name).cast(pa.string()))
        embedded = self.run.read_shard("embeddings", shard, ["row", *COLUMNS, *STATISTICS_COLUMNS])
        names = ("nearest", "groups", "classifier", "predictions")
        parts = {table: self.run.read_shard(table, shard) for table in names}
        return {name: self._view(name, shard, manifest, embedded, parts, real) for name in self.classified}

    def _view(
        self,
        name: str,
        shard: Shard,
        manifest: pa.Table,
        embedded: pa.Table,
        parts: dict[str, pa.Table],
        real: pa.Table,
    ) -> tuple[ViewRows, RowEvidence]:
        tables = {table: rows_of_generator(t, name) for table, t in parts.items()}
        rows = tables["nearest"].column("row").to_numpy()
        # Without a classifier predictions/ is empty and cannot be checked.
        for table in ("classifier", "predictions") if self.classified[name] else ("classifier",):
            _check_alignment(name, table, shard, rows, tables[table].column("row").to_numpy())
        embedded_rows = embedded.column("row").to_numpy()
        require_embedded(name, rows, embedded_rows)
        unexpected = ~np.isin(tables["groups"].column("row").to_numpy(), rows)
        if unexpected.any():
            raise SchemaError(
                f"{name}: groups/ has {int(unexpected.sum())} rows in {shard.name} that are not in nearest/; "
                "rerun with --redo-from neighbors"
            )
        files = embedded.take(pa.array(np.searchsorted(embedded_rows, rows)))
        evidence = _evidence(tables["classifier"], tables["predictions"], files, rows)
        nearest, is_real = tables["nearest"], tables["classifier"].column("is_real").to_numpy(zero_copy_only=False)
        family_inputs = row_evidence(self.families, nearest, is_real, real)
        if "facts" in self.families:
            family_inputs["values"] |= statistics_columns(files)
        chosen = manifest.take(pa.array(rows - shard.start))
        logit = _float_column(tables["predictions"], "logit_synthetic", len(rows))
        # scores/ is partitioned by generator, so the column would be redundant.
        view = ViewRows(chosen.drop_columns(["generator"]), nearest, tables["groups"], logit)
        synthetic = {other: rows for other, rows in self.rows.items() if other != REAL}
        return view, replace(
            evidence,
            matched_size=matched_sizes(synthetic).get(name),
            sizes=(self.rows[REAL], self.rows[name]),
            fields=family_inputs["fields"],
            values=family_inputs["values"],
        )


def _check_alignment(
    name: str, table: str, shard: Shard, rows: NDArray[np.int64], table_rows: NDArray[np.int64]
) -> None:
    """Raise SchemaError unless the rows of ``table`` are exactly ``rows``, those of nearest/."""
    if np.array_equal(table_rows, rows):
        return
    missing, unexpected = len(np.setdiff1d(rows, table_rows)), len(np.setdiff1d(table_rows, rows))
    duplicated = len(table_rows) - len(np.unique(table_rows))
    # Rows that only this table has were lost by nearest/, so the earlier stage must be repeated.
    stage = "classify" if np.array_equal(rows, np.unique(rows)) and not unexpected else "neighbors"
    raise SchemaError(
        f"{name}: {table} and nearest do not align in {shard.name}: {len(table_rows)} and {len(rows)} rows; "
        f"{missing} missing, {unexpected} unexpected, {duplicated} duplicated; rerun with --redo-from {stage}"
    )


def _float_column(table: pa.Table, name: str, n: int) -> NDArray[np.float64]:
    """Return a column as float64 (n,): NaN where null, and all NaN if the table is empty."""
    if not table.num_rows:
        return np.full(n, np.nan)
    return to_float64(table.column(name), np.nan)


def _evidence(folds: pa.Table, predictions: pa.Table, files: pa.Table, rows: NDArray[np.int64]) -> RowEvidence:
    """Return the `RowEvidence` that is read from tables; ``fields`` and ``values`` of families are left empty."""
    n = len(rows)
    direction_coordinates, fold = np.full((n, DIRECTIONS), np.nan), np.empty(0, np.int8)
    without = matched = reassigned = None
    if predictions.num_rows:
        direction_coordinates, fold = (
            to_matrix(predictions.column("direction_coordinates")),
            predictions.column("fold").to_numpy(),
        )
        without = _refit_logits(predictions, "logit_without")
        matched = _refit_logits(predictions, "logit_matched")
        reassigned = _refit_logits(predictions, "logit_reassigned")
    return RowEvidence(
        log_prior=folds.column("log_prior").to_numpy(),
        hashes=RowHashes(*(folds.column(name).to_numpy() for name in ("key", "group_key", "cluster_key"))),
        logit_file_facts=_float_column(predictions, "logit_file_facts", n),
        bytes_per_pixel=bytes_per_pixel(files),
        direction_coordinates=direction_coordinates,
        fold=fold,
        logit_without=without,
        logit_matched=matched,
        logit_reassigned=reassigned,
    )


def _refit_logits(predictions: pa.Table, name: str) -> NDArray[np.float64] | None:
    """Return a matrix of logits by refitted heads; None if there were no refits."""
    logits = to_matrix(predictions.column(name))
    return logits if np.isfinite(logits).any() else None
