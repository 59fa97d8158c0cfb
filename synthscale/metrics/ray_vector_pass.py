"""A part of reduce: the metrics that are made of embeddings, over Ray tasks that pass over groups of shards.

Vectors stay in tasks: the driver gets a few numbers a generator.
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
class _Pass:
    """What the tasks are told: the run's tables, the sets with their rows, and the parts of moments."""

    run: RunDirectory
    layout: VectorLayout
    rows: dict[str, int]
    parts: int

    @property
    def generators(self) -> list[str]:
        return [name for name in self.rows if name != REAL]

    def read(self, shard: Shard) -> dict[str, VectorRows]:
        """Return a shard's rows by set."""
        embedded = self.run.read_shard("embeddings", shard, ["row", "vector"])
        row = embedded.column("row").to_numpy()
        manifest = self.run.read_shard("manifest", shard, ["generator", "label"])
        at = row - shard.start
        names = manifest.column("generator").to_pylist()
        kinds = np.array([names[i] or REAL for i in at.tolist()], object)
        labels = manifest.column("label").to_pylist()
        folds = self.run.read_shard(
            "classifier", shard, ["generator", "row", "key", "group_key", "fold", "is_real"]
        )
        key, group, fold = self._folds(folds, row)
        vectors = vector_matrix(embedded, self.layout.classify)
        found = {}
        for name in self.rows:
            own = np.flatnonzero(kinds == name)
            if len(own):
                found[name] = VectorRows(
                    vectors[own], key[own], group[own], [labels[at[i]] for i in own.tolist()], fold[own]
                )
        return found

    def _folds(
        self, table: Any, row: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int8]]:
        key, group = (np.zeros(len(row), np.uint64) for _ in range(2))
        fold = np.full((len(row), len(self.generators)), -1, np.int8)
        for i, name in enumerate(self.generators):
            own = rows_of_generator(table, name)
            wanted = own.column("row").to_numpy()
            require_embedded(name, wanted, row)
            at = np.searchsorted(row, wanted)
            key[at] = own.column("key").to_numpy()
            # Real rows stand for themselves: their groups differ between views.
            is_real = own.column("is_real").to_numpy(zero_copy_only=False)
            group[at] = np.where(is_real, key[at], own.column("group_key").to_numpy())
            dealt = own.column("fold").combine_chunks()
            if len(dealt.flatten()):
                fold[at, i] = dealt.flatten().to_numpy().reshape(len(at), -1)[:, 0]
            else:
                # No classifier could be fitted: rows are dealt as they come.
                fold[at, i] = fold_from_hash(key[at])
        return key, group, fold


def vector_families(context: StageContext, rows: dict[str, int]) -> dict[str, Families]:
    """Return each generator's metrics of the configured families that are made of embeddings.

    Args:
        context: the run's.
        rows: usable rows of each set.
    """
    wanted = requested_families(context.config.metrics.families)
    if not wanted:
        return {name: {} for name in rows if name != REAL}
    parts = PARTS if context.config.metrics.frechet_infinity else 1
    job = _Pass(context.run, context.layout, rows, parts)
    groups = [context.shards[i :: 2 * context.cpus] for i in range(2 * context.cpus)]
    groups = [group for group in groups if group]
    sums = _tree(ray.remote(_sum).options(num_cpus=1), [(job, group) for group in groups])
    moments = None
    if "vendi" in wanted:
        features = ray.remote(_vendi_map).options(num_cpus=1).remote(sums)
        moments = _tree(ray.remote(_vendi).options(num_cpus=1), [(job, group, features) for group in groups])
    evaluate = ray.remote(_evaluate).options(num_cpus=1)
    found = [evaluate.remote(sums, moments, name, i, wanted) for i, name in enumerate(job.generators)]
    return dict(zip(job.generators, ray.get(found), strict=True))


def _tree(task: Any, arguments: Sequence[tuple[Any, ...]]) -> Any:
    """Run a task for each of some arguments and add up what they give, two at a time; return the reference."""
    merge = ray.remote(_merge).options(num_cpus=1)
    waiting = [task.remote(*each) for each in arguments]
    while len(waiting) > 1:
        waiting = [*waiting[2:], merge.remote(waiting[0], waiting[1])]
    return waiting[0]


def _merge(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    return {
        name: fold_left(add, [part[name] for part in (one, two) if name in part])
        for name in dict.fromkeys([*one, *two])
    }


def _sum(job: _Pass, shards: list[Shard]) -> dict[str, VectorSums]:
    total: dict[str, VectorSums] = {}
    for shard in shards:
        found = {name: VectorSums.of(own, job.rows[name], job.parts) for name, own in job.read(shard).items()}
        total = _merge(total, found)
    return total


def _vendi_map(sums: dict[str, VectorSums]) -> VendiMap:
    return VendiMap.of(sums[REAL])


def _vendi(job: _Pass, shards: list[Shard], features: VendiMap) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for shard in shards:
        total = _merge(total, {name: features.moment(own.vectors) for name, own in job.read(shard).items()})
    return total


def _evaluate(
    sums: dict[str, VectorSums], moments: dict[str, Any] | None, name: str, view: int, wanted: list[str]
) -> Families:
    own = None if moments is None else (moments[REAL], moments[name])
    return embedding_families((sums[REAL], sums[name]), own, view, wanted)
