"""Metric families computed from embeddings, for the stage reduce: Ray tasks over groups of shards.

Reads ``embeddings/``, ``manifest/`` and ``classifier/``; writes nothing. Vectors stay in the tasks: the driver
receives a few numbers per generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce as fold_left
from operator import add
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from synthscale.metrics.embedding_families import (
    PARTS,
    Families,
    VectorRows,
    VectorSums,
    VendiMap,
    embedding_families,
    fold_from_hash,
    requested_families,
)
from synthscale.runtime.stage_context import StageContext
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.columns import require_embedded, rows_of_generator, vector_matrix
from synthscale.tables.layout import Shard, VectorLayout
from synthscale.tables.schemas import REAL


@dataclass(frozen=True)
class _VectorPass:
    """Arguments of the tasks.

    Attributes:
        rows: number of usable rows of each set.
        parts: random parts that the moments are split into.
    """

    run: RunDirectory
    layout: VectorLayout
    rows: dict[str, int]
    parts: int

    @property
    def generators(self) -> list[str]:
        return [name for name in self.rows if name != REAL]

    def read(self, shard: Shard) -> dict[str, VectorRows]:
        """Return the embedded rows of a shard, by set."""
        embedded = self.run.read_shard("embeddings", shard, ["row", "vector"])
        row = embedded.column("row").to_numpy()
        manifest = self.run.read_shard("manifest", shard, ["generator", "label"])
        at = row - shard.start
        names = manifest.column("generator").to_pylist()
        set_names = np.array([names[i] or REAL for i in at.tolist()], object)
        labels = manifest.column("label").to_pylist()
        folds = self.run.read_shard(
            "classifier", shard, ["generator", "row", "key", "cluster_key", "fold", "is_real"]
        )
        key, cluster, part_key, fold = self._folds(folds, row)
        vectors = vector_matrix(embedded, self.layout.classify)
        result = {}
        for name in self.rows:
            chosen = np.flatnonzero(set_names == name)
            if len(chosen):
                result[name] = VectorRows(
                    vectors[chosen],
                    key[chosen],
                    cluster[chosen],
                    part_key[chosen],
                    [labels[at[i]] for i in chosen.tolist()],
                    fold[chosen],
                )
        return result

    def _folds(
        self, table: Any, row: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int8]]:
        """Return ``key``, ``cluster``, ``part_key`` and ``fold`` of `VectorRows` for embedded rows (n,)."""
        key, part_key = (np.zeros(len(row), np.uint64) for _ in range(2))
        cluster = np.zeros((len(row), len(self.generators)), np.uint64)
        fold = np.full((len(row), len(self.generators)), -1, np.int8)
        for i, name in enumerate(self.generators):
            view = rows_of_generator(table, name)
            view_row = view.column("row").to_numpy()
            require_embedded(name, view_row, row)
            at = np.searchsorted(row, view_row)
            key[at] = view.column("key").to_numpy()
            cluster[at, i] = view.column("cluster_key").to_numpy()
            is_real = view.column("is_real").to_numpy(zero_copy_only=False)
            part_key[at] = np.where(is_real, key[at], cluster[at, i])
            assigned = view.column("fold").combine_chunks()
            if len(assigned.flatten()):
                fold[at, i] = assigned.flatten().to_numpy().reshape(len(at), -1)[:, 0]
            else:
                # No classifier could be fitted, so there is no fold assignment to reuse.
                fold[at, i] = fold_from_hash(key[at])
        return key, cluster, part_key, fold


def vector_families(context: StageContext, rows: dict[str, int]) -> dict[str, Families]:
    """Return each generator's metrics of the configured families that are computed from embeddings.

    Args:
        context: the stage's context.
        rows: number of usable rows of each set.
    """
    requested = requested_families(context.config.metrics.families)
    if not requested:
        return {name: {} for name in rows if name != REAL}
    parts = PARTS if context.config.metrics.frechet_infinity else 1
    vector_pass = _VectorPass(context.run, context.layout, rows, parts)
    groups = [context.shards[i :: 2 * context.cpus] for i in range(2 * context.cpus)]
    groups = [group for group in groups if group]
    sums = _tree_reduce(ray.remote(_sum).options(num_cpus=1), [(vector_pass, group) for group in groups])
    moments = None
    if "vendi" in requested:
        features = ray.remote(_vendi_map).options(num_cpus=1).remote(sums)
        vendi = ray.remote(_vendi).options(num_cpus=1)
        moments = _tree_reduce(vendi, [(vector_pass, group, features) for group in groups])
    evaluate = ray.remote(_evaluate).options(num_cpus=1)
    families = [
        evaluate.remote(sums, moments, name, i, requested) for i, name in enumerate(vector_pass.generators)
    ]
    return dict(zip(vector_pass.generators, ray.get(families), strict=True))


def _tree_reduce(task: Any, arguments: Sequence[tuple[Any, ...]]) -> Any:
    """Run a task per argument tuple and merge the results pairwise in tasks; return the final object reference."""
    merge = ray.remote(_merge).options(num_cpus=1)
    references = [task.remote(*task_arguments) for task_arguments in arguments]
    while len(references) > 1:
        references = [*references[2:], merge.remote(references[0], references[1])]
    return references[0]


def _merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Add two mappings of mergeable sums by key."""
    return {
        name: fold_left(add, [part[name] for part in (a, b) if name in part]) for name in dict.fromkeys([*a, *b])
    }


def _sum(vector_pass: _VectorPass, shards: list[Shard]) -> dict[str, VectorSums]:
    total: dict[str, VectorSums] = {}
    for shard in shards:
        rows_by_set = vector_pass.read(shard).items()
        shard_sums = {
            name: VectorSums.of(rows, vector_pass.rows[name], vector_pass.parts) for name, rows in rows_by_set
        }
        total = _merge(total, shard_sums)
    return total


def _vendi_map(sums: dict[str, VectorSums]) -> VendiMap:
    return VendiMap.of(sums[REAL])


def _vendi(vector_pass: _VectorPass, shards: list[Shard], features: VendiMap) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for shard in shards:
        rows_by_set = vector_pass.read(shard).items()
        total = _merge(total, {name: features.moment(rows.vectors) for name, rows in rows_by_set})
    return total


def _evaluate(
    sums: dict[str, VectorSums], moments: dict[str, Any] | None, name: str, view: int, requested: list[str]
) -> Families:
    own_moments = None if moments is None else (moments[REAL], moments[name])
    return embedding_families((sums[REAL], sums[name]), own_moments, view, requested)
