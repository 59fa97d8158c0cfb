"""Assign folds and serve a run's tables to trainers and predictors.

Reads ``manifest/``, ``groups/`` and ``nearest/``, and writes fold assignments to ``classifier/``.
`TrainingReader` then reads ``embeddings/`` and ``classifier/`` shard by shard. The driver keeps a few numbers a
row, the 64-bit id hash among them, and no ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.classify.fold_views import FoldView, view_columns
from synthscale.classify.training import FoldPlan, NearDuplicates, VectorBlock, plan_folds
from synthscale.embed.file_metadata import COLUMNS, DIMENSIONS, metadata_vectors
from synthscale.runtime.stage_context import StageContext
from synthscale.statistics.size_matching import RowHashes, block_codes, matched_sizes
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.columns import require_embedded, rows_of_generator, vector_matrix
from synthscale.tables.layout import Shard, VectorLayout
from synthscale.tables.schemas import FOLDS, REAL

ClassifierInput = Literal["embedding", "file_facts"]
"""Input of a classifier: the image's embedding, or file metadata alone (`embed.file_metadata`)."""


def plan_all_folds(context: StageContext) -> dict[str, FoldPlan]:
    """Assign the rows of every generator and the real rows to folds."""
    manifest = context.read_columns("manifest", ["id_hash", "generator"])
    id_hashes = manifest.column("id_hash").to_numpy()
    is_real = manifest.column("generator").is_null().to_numpy()
    groups = context.read_columns("groups", ["generator", "row", "component_id", "cluster_id"])
    nearest = context.read_columns("nearest", ["generator", "row", "is_copy"])
    plans = {}
    for name in context.generators:
        view, grouped = rows_of_generator(nearest, name), rows_of_generator(groups, name)
        rows = view.column("row").to_numpy()
        columns = (grouped.column(column).to_numpy() for column in ("row", "component_id", "cluster_id"))
        members = NearDuplicates(*columns)
        is_copy = view.column("is_copy").to_numpy(zero_copy_only=False)
        plans[name] = plan_folds(rows, id_hashes[rows], is_real[rows], is_copy, members, context.config.classifier)
    return plans


def row_hashes(table: pa.Table) -> RowHashes:
    """Return the hashes of rows of ``classifier/``."""
    return RowHashes(*(table.column(name).to_numpy() for name in ("key", "group_key", "cluster_key")))


def write_folds(context: StageContext, plans: dict[str, FoldPlan]) -> None:
    """Write the fold assignments to ``classifier/``, one file for each shard."""
    priors = {name: plan.log_prior for name, plan in plans.items()}
    for shard in context.shards:
        pieces = []
        for name, plan in plans.items():
            low, high = np.searchsorted(plan.row, [shard.start, shard.stop])
            part = slice(low, high)
            repeats = plan.fold.shape[1]
            columns = {
                "generator": pa.array([name] * (high - low), pa.string()),
                "row": plan.row[part],
                "fold": pa.ListArray.from_arrays(
                    np.arange(high - low + 1, dtype=np.int32) * repeats, plan.fold[part].ravel()
                ),
                "is_real": plan.is_real[part],
                "is_copy": plan.is_copy[part],
                "key": plan.hashes.key[part],
                "group_key": plan.hashes.group[part],
                "cluster_key": plan.hashes.cluster[part],
                "log_prior": priors[name][part],
            }
            pieces.append(pa.table(columns))
        context.run.write_shard("classifier", shard, pa.concat_tables(pieces), FOLDS)


@dataclass(frozen=True)
class ShardRows:
    """A shard's embedded rows and fold assignments.

    Attributes:
        row: (n,) row numbers of the embedded rows.
        embedded: their columns of ``embeddings/``.
        vectors: (n, d) classifier input; None if the rows have no file metadata.
        folds: the shard's table of ``classifier/``.
    """

    row: NDArray[np.int64]
    embedded: pa.Table
    vectors: NDArray[np.floating] | None
    folds: pa.Table

    def view_rows(self, generator: str, repeats: int) -> tuple[NDArray[np.int64], pa.Table, NDArray[np.int8]]:
        """Return the m rows of a generator's view (its own and the real ones) in this shard.

        Returns:
            Their positions among the embedded rows (m,), their rows of ``classifier/``, and their folds (m,
            repeats).

        Raises:
            SchemaError: a row of the view has no embedding.
        """
        table = rows_of_generator(self.folds, generator)
        row = table.column("row").to_numpy()
        at = np.searchsorted(self.row, row)
        require_embedded(generator, row, self.row)
        fold = table.column("fold").combine_chunks().flatten().to_numpy().reshape(-1, repeats)
        return at, table, fold


@dataclass(frozen=True)
class TrainingReader:
    """Reads a run's tables for trainers and predictors; picklable.

    Attributes:
        run: the run directory.
        layout: which dimensions of the vectors the classifier uses.
        views: one for each repeat of each generator that has a classifier.
        present: names of the sets that have rows in each shard, by shard number.
        rows: number of synthetic rows of each generator.
    """

    run: RunDirectory
    layout: VectorLayout
    views: list[FoldView]
    present: dict[int, frozenset[str]]
    rows: dict[str, int]

    @classmethod
    def of(cls, context: StageContext, plans: dict[str, FoldPlan]) -> "TrainingReader":
        """Create a reader for a run whose folds have been written."""
        starts = [shard.start for shard in context.shards]
        sets_of: dict[int, set[str]] = {shard.index: set() for shard in context.shards}
        for name, plan in plans.items():
            for kind, rows in ((REAL, plan.row[plan.is_real]), (name, plan.row[~plan.is_real])):
                for i in np.unique(np.searchsorted(starts, rows, side="right") - 1).tolist():
                    sets_of[context.shards[i].index].add(kind)
        views = [view for name, plan in plans.items() for view in plan.views(name)]
        present = {i: frozenset(names) for i, names in sets_of.items()}
        synthetic = {name: int((~plan.is_real).sum()) for name, plan in plans.items()}
        return cls(context.run, context.layout, views, present, synthetic)

    @property
    def repeats(self) -> dict[str, int]:
        """Number of fold assignments of each generator that has a classifier."""
        return {name: len(columns) for name, columns in view_columns(self.views).items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of synthetic rows of the matched subsample, for each generator that has one."""
        return matched_sizes(self.rows)

    def block_codes(self, generator: str, table: pa.Table) -> NDArray[np.int16]:
        """Return the block codes of rows of ``classifier/`` (`size_matching.block_codes`): (n,)."""
        is_real = table.column("is_real").to_numpy(zero_copy_only=False)
        return block_codes(row_hashes(table), is_real, self.rows[generator], self.sizes.get(generator))

    def dimensions(self, source: ClassifierInput) -> int:
        """Return d, the length of the classifier's input vectors."""
        return self.layout.classify[1] - self.layout.classify[0] if source == "embedding" else DIMENSIONS

    def read(self, shard: Shard, source: ClassifierInput) -> ShardRows:
        """Read a shard's vectors and fold assignments."""
        columns = ["vector"] if source == "embedding" else list(COLUMNS)
        table = self.run.read_shard("embeddings", shard, ["row", *columns])
        is_embedding = source == "embedding"
        vectors = vector_matrix(table, self.layout.classify) if is_embedding else metadata_vectors(table)
        folds = self.run.read_shard("classifier", shard)
        return ShardRows(table.column("row").to_numpy(), table, vectors, folds)

    def blocks(self, shard: Shard, source: ClassifierInput, name: str | None = None) -> Iterator[VectorBlock]:
        """Yield one block for each set with rows in a shard, or for the named set alone."""
        names = self.present[shard.index] if name is None else self.present[shard.index] & {name}
        if not names:
            return
        rows = self.read(shard, source)
        if rows.vectors is None:
            return
        for kind in sorted(names):
            block = self._block(rows, kind)
            if block is not None:
                yield block

    def _block(self, rows: ShardRows, kind: str) -> VectorBlock | None:
        """Return the rows of one set, with their folds and block codes in all views; None without rows."""
        n = len(rows.row)
        fold = np.full((n, len(self.views)), -1, np.int8)
        block = np.full((n, len(self.views)), -1, np.int16)
        key = np.zeros(n, np.uint64)
        in_set, is_copy = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        for generator, columns in view_columns(self.views).items():
            if kind not in (REAL, generator):
                continue
            at, table, view_fold = rows.view_rows(generator, len(columns))
            chosen = table.column("is_real").to_numpy(zero_copy_only=False) == (kind == REAL)
            at, view_fold, table = at[chosen], view_fold[chosen], table.filter(pa.array(chosen))
            fold[np.ix_(at, columns)] = view_fold
            block[np.ix_(at, columns)] = self.block_codes(generator, table)[:, None]
            key[at] = table.column("key").to_numpy()
            is_copy[at] = table.column("is_copy").to_numpy(zero_copy_only=False)
            in_set[at] = True
        if rows.vectors is None or not in_set.any():
            return None
        return VectorBlock(kind, rows.vectors[in_set], fold[in_set], key[in_set], is_copy[in_set], block[in_set])
