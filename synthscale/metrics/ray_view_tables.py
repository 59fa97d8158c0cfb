"""A part of reduce: one shard's tables, joined for each generator's view."""

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.embed.file_metadata import COLUMNS, STATISTICS_COLUMNS, bytes_per_pixel, statistics_columns
from synthscale.errors import SchemaError
from synthscale.metrics.evidence import Evidence, row_evidence
from synthscale.metrics.scores import ViewRows
from synthscale.statistics.size_matching import matched_sizes
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.columns import require_embedded, to_float64, to_matrix
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import DIRECTIONS, DISTINCT_REAL

_MANIFEST_NAMES = ("real_or_synthetic", "generator")


def real_lookup(run: RunDirectory, shards: list[Shard]) -> pa.Table:
    """Return row, id and the distance to the nearest other, distinct one of every usable real row, ascending."""
    parts = []
    for shard in shards:
        near = run.read_shard("nearest", shard, ["generator", "row", DISTINCT_REAL])
        names = run.read_shard("manifest", shard, ["id", "generator"])
        # What real rows find among themselves is the same in every view.
        near = near.filter(pc.equal(near.column("generator"), _first(near)))
        at = near.column("row").to_numpy() - shard.start
        real = np.asarray(names.column("generator").is_null())[at]
        columns = {
            "row": near.column("row").to_numpy()[real],
            "id": names.column("id").take(pa.array(at[real])),
            DISTINCT_REAL: to_float64(near.column(DISTINCT_REAL), np.inf)[real],
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts).combine_chunks()


def _first(near: pa.Table) -> pa.Scalar:
    names = pc.unique(near.column("generator").cast(pa.string()))
    return names[0] if len(names) else pa.scalar("")


@dataclass(frozen=True)
class ViewReader:
    """Joins the tables of a shard.

    Attributes:
        classified: which generators have predictions.
        families: of metrics, that are asked for.
        rows: synthetic rows of each generator.
    """

    run: RunDirectory
    classified: dict[str, bool]
    families: tuple[str, ...] = ()
    rows: dict[str, int] = field(default_factory=dict)

    def read(self, shard: Shard, real: pa.Table) -> dict[str, tuple[ViewRows, Evidence]]:
        """Return what is known of a shard's rows in each view; ``real`` is what `real_lookup` gives."""
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
    ) -> tuple[ViewRows, Evidence]:
        own = {table: t.filter(pc.equal(t.column("generator"), name)) for table, t in parts.items()}
        rows = own["nearest"].column("row").to_numpy()
        # Where no classifier can be fitted there are no predictions.
        for table in ("classifier", "predictions") if self.classified[name] else ("classifier",):
            _check_alignment(name, table, shard, rows, own[table].column("row").to_numpy())
        there = embedded.column("row").to_numpy()
        require_embedded(name, rows, there)
        foreign = ~np.isin(own["groups"].column("row").to_numpy(), rows)
        if foreign.any():
            raise SchemaError(
                f"{name}: groups/ has {int(foreign.sum())} rows in {shard.name} that nearest/ has not; "
                "repeat with --redo-from neighbors"
            )
        files = embedded.take(pa.array(np.searchsorted(there, rows)))
        evidence = _evidence(own["classifier"], own["predictions"], files, rows)
        nearest, is_real = own["nearest"], own["classifier"].column("is_real").to_numpy(zero_copy_only=False)
        found = row_evidence(self.families, nearest, is_real, real)
        if "facts" in self.families:
            found["values"] |= statistics_columns(files)
        chosen = manifest.take(pa.array(rows - shard.start))
        # The generator stands in the partition's path.
        logit = _numbers(own["predictions"], "logit_synthetic", len(rows))
        view = ViewRows(chosen.drop_columns(["generator"]), nearest, own["groups"], logit)
        size = matched_sizes(self.rows).get(name)
        matched = None if size is None else (size, self.rows[name])
        return view, replace(evidence, matched=matched, fields=found["fields"], values=found["values"])


def _check_alignment(
    name: str, table: str, shard: Shard, rows: NDArray[np.int64], found: NDArray[np.int64]
) -> None:
    if np.array_equal(found, rows):
        return
    missing, foreign = len(np.setdiff1d(rows, found)), len(np.setdiff1d(found, rows))
    doubled = len(found) - len(np.unique(found))
    # Where the table knows rows that nearest/ does not, that one lost them.
    stage = "classify" if np.array_equal(rows, np.unique(rows)) and not foreign else "neighbors"
    raise SchemaError(
        f"{name}: {table} and nearest do not align in {shard.name}: {len(found)} rows and {len(rows)}; {missing} "
        f"missing, {foreign} more than there should be, {doubled} doubled; repeat with --redo-from {stage}"
    )


def _numbers(table: pa.Table, name: str, n: int) -> NDArray[np.float64]:
    """A column as float64, NaN where null; all NaN where the table is empty."""
    if not table.num_rows:
        return np.full(n, np.nan)
    return to_float64(table.column(name), np.nan)


def _evidence(folds: pa.Table, predictions: pa.Table, files: pa.Table, rows: NDArray[np.int64]) -> Evidence:
    n = len(rows)
    direction_coordinates, fold = np.full((n, DIRECTIONS), np.nan), np.empty(0, np.int8)
    without = matched = reassigned = None
    if predictions.num_rows:
        direction_coordinates, fold = (
            to_matrix(predictions.column("direction_coordinates")),
            predictions.column("fold").to_numpy(),
        )
        without = _refitted(predictions, "logit_without")
        matched = _refitted(predictions, "logit_matched")
        reassigned = _refitted(predictions, "logit_reassigned")
    return Evidence(
        log_prior=folds.column("log_prior").to_numpy(),
        group_key=folds.column("group_key").to_numpy(),
        logit_file_facts=_numbers(predictions, "logit_file_facts", n),
        bytes_per_pixel=bytes_per_pixel(files),
        direction_coordinates=direction_coordinates,
        fold=fold,
        logit_without=without,
        logit_matched=matched,
        logit_reassigned=reassigned,
    )


def _refitted(predictions: pa.Table, name: str) -> NDArray[np.float64] | None:
    """Logits by refitted heads; None where nothing was refitted."""
    logits = to_matrix(predictions.column(name))
    return logits if np.isfinite(logits).any() else None
