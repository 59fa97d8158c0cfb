"""A part of classify: ``groups/``, ``nearest/``, ``manifest/`` -> ``classifier/`` (folds), and who trains on it.

The driver holds a few numbers a row; ids are read shard by shard and kept as 64-bit keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.classify.logistic_loss import FoldView, view_columns
from synthscale.classify.training import FoldPlan, VectorBlock, plan_folds
from synthscale.embed.file_metadata import COLUMNS, DIMENSIONS, metadata_vectors
from synthscale.runtime.stage_context import StageContext
from synthscale.statistics.size_matching import matched_block_codes, matched_sizes
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.columns import require_embedded, rows_of_generator, vector_matrix
from synthscale.tables.id_hashes import Hashes, hash_ids
from synthscale.tables.layout import Shard, VectorLayout
from synthscale.tables.schemas import FOLDS, REAL

ClassifierInput = Literal["embedding", "file_facts"]
"""What a classifier sees: the picture's embedding, or what the file says apart from the picture."""


def plan_all_folds(context: StageContext) -> dict[str, FoldPlan]:
    """Deal every generator's view to folds."""
    keys, is_real = _keys(context)
    groups = context.read_all("groups", ["generator", "row", "near_duplicate_id"])
    nearest = context.read_all("nearest", ["generator", "row", "is_copy"])
    plans = {}
    for name in context.generators:
        view, grouped = rows_of_generator(nearest, name), rows_of_generator(groups, name)
        rows = view.column("row").to_numpy()
        members = (grouped.column("row").to_numpy(), grouped.column("near_duplicate_id").to_numpy())
        is_copy = view.column("is_copy").to_numpy(zero_copy_only=False)
        plans[name] = plan_folds(rows, keys[rows], is_real[rows], is_copy, members, context.config.classifier)
    return plans


def _keys(context: StageContext) -> tuple[Hashes, NDArray[np.bool_]]:
    """Each row's key, and whether it is real: (n,) each."""
    keys, is_real = [], []
    for shard in context.shards:
        part = context.run.read_shard("manifest", shard, ["id", "generator"])
        keys.append(hash_ids(part.column("id").to_pylist()))
        is_real.append(part.column("generator").is_null().to_numpy())
    return np.concatenate(keys), np.concatenate(is_real)


def write_folds(context: StageContext, plans: dict[str, FoldPlan]) -> None:
    """Write ``classifier/``."""
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
                "key": plan.key[part],
                "group_key": plan.group[part],
                "log_prior": priors[name][part],
            }
            pieces.append(pa.table(columns))
        context.run.write_shard("classifier", shard, pa.concat_tables(pieces), FOLDS)


@dataclass(frozen=True)
class ShardRows:
    """A shard's embedded rows: numbers (n,), vectors (n, d) or None, and the lines of ``classifier/``."""

    row: NDArray[np.int64]
    embedded: pa.Table
    vectors: NDArray[np.floating] | None
    folds: pa.Table

    def of(self, generator: str, repeats: int) -> tuple[NDArray[np.int64], pa.Table, NDArray[np.int8]]:
        """Return where the rows of a generator's view are, their lines, and their folds (m, deals)."""
        own = rows_of_generator(self.folds, generator)
        wanted = own.column("row").to_numpy()
        at = np.searchsorted(self.row, wanted)
        require_embedded(generator, wanted, self.row)
        fold = own.column("fold").combine_chunks().flatten().to_numpy().reshape(-1, repeats)
        return at, own, fold


@dataclass(frozen=True)
class TrainingReader:
    """The run's tables as trainers and predictors see them; picklable.

    Attributes:
        views: every deal of every generator that has a classifier.
        present: the sets that have rows in each shard.
        rows: synthetic rows of each generator.
    """

    run: RunDirectory
    layout: VectorLayout
    views: list[FoldView]
    present: dict[int, frozenset[str]]
    rows: dict[str, int]

    @classmethod
    def of(cls, context: StageContext, plans: dict[str, FoldPlan]) -> "TrainingReader":
        """Return the tables of a run whose folds are dealt."""
        starts = [shard.start for shard in context.shards]
        found: dict[int, set[str]] = {shard.index: set() for shard in context.shards}
        for name, plan in plans.items():
            for kind, rows in ((REAL, plan.row[plan.is_real]), (name, plan.row[~plan.is_real])):
                for i in np.unique(np.searchsorted(starts, rows, side="right") - 1).tolist():
                    found[context.shards[i].index].add(kind)
        views = [view for name, plan in plans.items() for view in plan.views(name)]
        present = {i: frozenset(names) for i, names in found.items()}
        synthetic = {name: int((~plan.is_real).sum()) for name, plan in plans.items()}
        return cls(context.run, context.layout, views, present, synthetic)

    @property
    def repeats(self) -> dict[str, int]:
        """How often each generator's rows are dealt."""
        return {name: len(columns) for name, columns in view_columns(self.views).items()}

    @property
    def sizes(self) -> dict[str, int]:
        """The size of the matched subsample of each generator that has one."""
        return matched_sizes(self.rows)

    def codes(self, generator: str, lines: pa.Table) -> NDArray[np.int8]:
        """Return the codes of the blocks of lines of ``classifier/``: (n,)."""
        is_real = lines.column("is_real").to_numpy(zero_copy_only=False)
        group = lines.column("group_key").to_numpy()
        return matched_block_codes(group, is_real, self.rows[generator], self.sizes.get(generator))

    def dimensions(self, part: ClassifierInput) -> int:
        """Return the length of what a classifier sees."""
        return self.layout.classify[1] - self.layout.classify[0] if part == "embedding" else DIMENSIONS

    def read(self, shard: Shard, part: ClassifierInput) -> ShardRows:
        """Read a shard."""
        columns = ["vector"] if part == "embedding" else list(COLUMNS)
        table = self.run.read_shard("embeddings", shard, ["row", *columns])
        embedding = part == "embedding"
        vectors = vector_matrix(table, self.layout.classify) if embedding else metadata_vectors(table)
        folds = self.run.read_shard("classifier", shard)
        return ShardRows(table.column("row").to_numpy(), table, vectors, folds)

    def blocks(self, shard: Shard, part: ClassifierInput, name: str | None = None) -> Iterator[VectorBlock]:
        """Yield a shard's rows by set, or those of one set."""
        wanted = self.present[shard.index] if name is None else self.present[shard.index] & {name}
        if not wanted:
            return
        rows = self.read(shard, part)
        if rows.vectors is None:
            return
        for kind in sorted(wanted):
            block = self._block(rows, kind)
            if block is not None:
                yield block

    def _block(self, rows: ShardRows, kind: str) -> VectorBlock | None:
        n = len(rows.row)
        fold, block = (np.full((n, len(self.views)), -1, np.int8) for _ in range(2))
        key = np.zeros(n, np.uint64)
        own, is_copy = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        for generator, columns in view_columns(self.views).items():
            if kind not in (REAL, generator):
                continue
            at, lines, dealt = rows.of(generator, len(columns))
            chosen = lines.column("is_real").to_numpy(zero_copy_only=False) == (kind == REAL)
            at, dealt, lines = at[chosen], dealt[chosen], lines.filter(pa.array(chosen))
            fold[np.ix_(at, columns)] = dealt
            block[np.ix_(at, columns)] = self.codes(generator, lines)[:, None]
            key[at] = lines.column("key").to_numpy()
            is_copy[at] = lines.column("is_copy").to_numpy(zero_copy_only=False)
            own[at] = True
        if rows.vectors is None or not own.any():
            return None
        return VectorBlock(kind, rows.vectors[own], fold[own], key[own], is_copy[own], block[own])
