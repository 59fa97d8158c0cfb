"""k-NN searches of all rows, and counts within k-NN radii: FAISS indexes sharded over actors.

The rows are divided into parts of as many rows as ``neighbors.actor_memory_gib`` allows. Where there are more
parts than actors, each actor loads one part after another, so that memory does not grow with the number of rows. A
rerun repeats only the searches that have no saved result.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from synthscale.neighbors.cell_index import cells_for, index_sample_size, train_index
from synthscale.neighbors.distance import Floats, Rows
from synthscale.neighbors.embedding_reader import EmbeddingBlock, EmbeddingReader
from synthscale.neighbors.knn_search import (
    ALL_CELLS,
    FLAT_ROWS,
    SAMPLED_QUERIES,
    KnnResult,
    concatenate_results,
    merge_nearest,
)
from synthscale.neighbors.ray_copy_scan import CopyScan, sample_distinct
from synthscale.neighbors.ray_index_actors import (
    IndexActor,
    IndexHolder,
    IndexPart,
    SearchResults,
    SetReferences,
    result_name,
)
from synthscale.neighbors.search_backend import KnnQuery, RadiusKey, RadiusQuery, SetPair
from synthscale.neighbors.search_space import SearchSpace
from synthscale.runtime.task_pool import TaskPool
from synthscale.tables.layout import Shard

_CELL_NUMBERS = 64
"""float32 numbers that an index stores for each row in addition to its vector: the projected point."""
_CORES_AN_ACTOR = 4
"""Cores per index actor, so that the products of one part use several threads."""


class IndexProcesses:
    """The index actors of a run, which serve one search space after another.

    Small sets are searched without actors, in this process.
    """

    def __init__(
        self,
        reader: EmbeddingReader,
        shards: Sequence[Shard],
        chunks: list[list[Shard]],
        pool: TaskPool,
        *,
        in_process: bool = False,
    ) -> None:
        """Start the actors, each with a GPU or about four cores; none if all searches run ``in_process``."""
        self.reader, self.shards, self.chunks, self.pool = reader, shards, chunks, pool
        self.count = 1 if in_process else pool.gpus or max(1, min(pool.workers // _CORES_AN_ACTOR, len(shards)))
        self._actors: list[Any] = []
        self._holder: IndexHolder | None = None
        self._places: Any = None
        if in_process:
            self._holder = IndexHolder(reader, chunks)
        else:
            self._start_actors()

    def _start_actors(self) -> None:
        count, pool = self.count, self.pool
        # An actor that takes the only core would block the tasks that it waits for.
        cpus, gpus = int(pool.workers > count), int(pool.gpus > 0)
        # For single actors Ray's SPREAD is best effort: two raylets may choose the same node.
        places = placement_group([{"CPU": cpus, "GPU": gpus}] * count, "SPREAD") if count > 1 else None
        self._places = places
        self._actors = [
            ray.remote(IndexActor)
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                max_restarts=-1,
                max_task_retries=3,
                scheduling_strategy=PlacementGroupSchedulingStrategy(places, i) if places else "DEFAULT",
            )
            .remote(self.reader, self.chunks, max(1, pool.workers // count))
            for i in range(count)
        ]

    def call(self, method: str, part: IndexPart, *arguments: Any) -> Any:
        """Call a method of the holder of a part; return a reference to the result."""
        if self._holder is None:
            return getattr(self._actors[part.number % self.count], method).remote(part, *arguments)
        # As Ray does for a task, replace references by their objects.
        values = (ray.get(own) if isinstance(own, ray.ObjectRef) else own for own in arguments)
        return ray.put(getattr(self._holder, method)(part, *values))

    def close(self) -> None:
        """End the actors, so that later tasks can use their cores, or free the indexes in this process."""
        self._holder = None
        for actor in self._actors:
            ray.kill(actor)
        if self._places is not None:
            remove_placement_group(self._places)
            self._places = None
        self._actors = []


class IndexCluster:
    """The indexes of all sets in one search space, held by the run's index processes."""

    def __init__(
        self, processes: IndexProcesses, space: SearchSpace, scanned: CopyScan, memory_bytes: int
    ) -> None:
        """Divide the distinct rows into parts that fit into memory, and train the indexes of large sets.

        Args:
            processes: hold the parts.
            space: the space of the indexes.
            scanned: exact copies and samples.
            memory_bytes: memory limit of a process.
        """
        self._processes, self._pool, self._chunks = processes, processes.pool, processes.chunks
        self._space, self._reader = space, replace(processes.reader, space=space)
        self._scan, self._shared = scanned, ray.put(scanned)
        self._count = processes.count
        rows = max(1, memory_bytes // (4 * (space.width + _CELL_NUMBERS) + 16))
        needed = -(-sum(scanned.distinct.values()) // rows)
        shards = list(processes.shards)
        # Every actor gets the same number of parts. Shards alternate, so that each part has rows of every set.
        self.parts = min(len(shards), self._count * -(-needed // self._count))
        train = ray.remote(_train).options(num_cpus=1)
        trained = tuple(
            (
                code,
                train.remote(self._shared, space, code, index_sample_size(n), cells_for(n))
                if n > FLAT_ROWS
                else None,
            )
            for code, n in scanned.distinct.items()
        )
        sets = SetReferences(ray.put(scanned.copies), trained)
        self._parts = [IndexPart(i, self.parts, shards[i :: self.parts], sets, space) for i in range(self.parts)]

    def close(self) -> None:
        """End the processes."""
        self._processes.close()

    def _call(self, method: str, part: IndexPart, *arguments: Any) -> Any:
        return self._processes.call(method, part, *arguments)

    def _for_all(self, method: str, queries: Any, what: str) -> None:
        """Search every chunk in every part; an actor finishes a part before it loads its next one.

        Results that an earlier run saved are kept.
        """
        done = self._reader.saved(f"{method}-of-{self.parts}")
        items = [
            (part, chunk)
            for start in range(0, self.parts, self._count)
            for chunk in range(len(self._chunks))
            for part in self._parts[start : start + self._count]
            if result_name(method, chunk, part.number, self.parts) not in done
        ]

        def submit(item: tuple[IndexPart, int]) -> Any:
            return self._call(method, *item, queries)

        for _ in self._pool.run(items, submit, what):
            pass

    # All rows.

    @property
    def results(self) -> SearchResults:
        """The saved results of all chunks."""
        return SearchResults(self._reader, self._chunks, self.parts)

    def search(self, queries: Sequence[KnnQuery], wanted: Collection[SetPair]) -> dict[SetPair, KnnResult]:
        """Search all distinct rows and save the results; return those of the wanted pairs."""
        self._for_all("nearest", list(queries), "nearest neighbours: chunks")
        if not wanted:
            return {}
        found = [self.results.knn(chunk) for chunk in range(len(self._chunks))]
        return {pair: concatenate_results([results[pair] for results in found]) for pair in wanted}

    def count_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> None:
        """Count rows within k-NN radii for all distinct rows, and save the counts."""
        self._for_all("radii", dict(queries), "rows within radii: chunks")

    # Samples.

    def search_sample(self, pairs: Sequence[SetPair], counts: Mapping[int, int]) -> dict[SetPair, KnnResult]:
        """Return the exact nearest neighbour of each of ``counts[code]`` sampled rows of the query sets."""
        block = self._sample(counts)
        found = self._knn_of_block([KnnQuery(*pair, 1, ALL_CELLS) for pair in pairs], block)
        drawn: EmbeddingBlock = ray.get(block)
        return {
            pair: KnnResult(drawn.of_set(pair.query).row, *own) for pair, own in zip(pairs, found, strict=True)
        }

    def sample_distances(self, queries: Sequence[KnnQuery]) -> list[Floats]:
        """Return the k-NN distances, (m, k), of the recall sample of each query set."""
        return [distance for distance, _ in self._knn_of_block(queries, self._recall_sample)]

    def sample_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> dict[RadiusKey, NDArray[np.int32]]:
        """Return the radius counts, (m,), of the recall sample of each query set."""
        parts = ray.get(
            [self._call("count_radii", part, self._recall_sample, dict(queries)) for part in self._parts]
        )
        return {
            key: np.minimum(np.sum([part[key] for part in parts], axis=0), query.most)
            for key, query in queries.items()
        }

    @cached_property
    def _recall_sample(self) -> Any:
        return self._sample(dict.fromkeys(self._scan.distinct, SAMPLED_QUERIES))

    def _sample(self, counts: Mapping[int, int]) -> Any:
        return ray.remote(_sorted_sample).options(num_cpus=1).remote(self._shared, self._space, dict(counts))

    def _knn_of_block(self, queries: Sequence[KnnQuery], block: Any) -> list[tuple[Floats, Rows]]:
        parts = ray.get([self._call("knn", part, block, list(queries)) for part in self._parts])
        return [merge_nearest([part[i] for part in parts], query.k) for i, query in enumerate(queries)]


def _train(scanned: CopyScan, space: SearchSpace, code: int, rows: int, cells: int) -> NDArray[np.uint8]:
    sample = sample_distinct(scanned, {code: rows}, space).vectors
    return train_index(sample.astype(np.float32), cells, space.metric)


def _sorted_sample(scanned: CopyScan, space: SearchSpace, counts: dict[int, int]) -> EmbeddingBlock:
    block = sample_distinct(scanned, counts, space)
    return block.take(np.argsort(block.row))
