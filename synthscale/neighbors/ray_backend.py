"""The back end of neighbors/analysis.py on Ray: index actors, join tasks, and look-ups of vectors by shard."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Floats, Rows, normalized
from synthscale.neighbors.edges import Codes, Edges, distinct_edges
from synthscale.neighbors.join import JoinResult
from synthscale.neighbors.knn_search import KnnResult
from synthscale.neighbors.radius import ViewSearches
from synthscale.neighbors.ray_cell_join import CellJoin, JoinFiles
from synthscale.neighbors.ray_copy_scan import CopyScan, sample_distinct
from synthscale.neighbors.ray_index_actors import SearchResults
from synthscale.neighbors.ray_index_cluster import IndexCluster, IndexProcesses
from synthscale.neighbors.ray_row_lookup import RowLookup
from synthscale.neighbors.search_backend import KnnQuery, RadiusKey, RadiusQuery, SetPair, view_pairs
from synthscale.neighbors.search_space import SearchSpace
from synthscale.neighbors.view import K, listed_edges
from synthscale.runtime.task_pool import TaskPool
from synthscale.statistics.jackknife import Blocks
from synthscale.statistics.prdc_variance import sample_rows, share_deviations


class RayBackend:
    """Implements `SearchBackend` on Ray: rows stay in files and actors; the driver has edges, copies, groups."""

    def __init__(
        self,
        processes: IndexProcesses,
        space: SearchSpace,
        scanned: CopyScan,
        pool: TaskPool,
        memory_bytes: int,
    ) -> None:
        """Hand the distinct rows to the index processes.

        Args:
            processes: the index processes, with the run's embeddings and a pool of the tasks that need GPUs.
            space: the space that is searched.
            scanned: exact copies and samples.
            pool: task pool for CPUs.
            memory_bytes: memory limit of an index process, and of a join task.
        """
        reader = replace(processes.reader, space=space)
        self.names: Sequence[str] = reader.names
        self.distinct: Mapping[int, int] = scanned.distinct
        self.copies: Copies = scanned.copies
        self.copy_codes: Codes = scanned.codes
        self._reader, self._chunks, self._scanned = reader, processes.chunks, scanned
        self._pool, self._gpu_pool, self._memory_bytes = pool, processes.pool, memory_bytes
        self._space, self._joins = space, 0
        self._cluster = IndexCluster(processes, space, scanned, memory_bytes)

    @property
    def results(self) -> SearchResults:
        """The saved search results, by chunk."""
        return self._cluster.results

    def sample_distances(self, queries: Sequence[KnnQuery]) -> list[Floats]:
        """See `SearchBackend`."""
        return self._cluster.sample_distances(queries)

    def search(self, queries: Sequence[KnnQuery], wanted: Collection[SetPair]) -> dict[SetPair, KnnResult]:
        """See `SearchBackend`."""
        return self._cluster.search(queries, wanted)

    def search_sample(self, pairs: Sequence[SetPair], counts: Mapping[int, int]) -> dict[SetPair, KnnResult]:
        """See `SearchBackend`."""
        return self._cluster.search_sample(pairs, counts)

    def count_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> None:
        """See `SearchBackend`."""
        self._cluster.count_radii(queries)

    def sample_radii(self, queries: Mapping[RadiusKey, RadiusQuery]) -> dict[RadiusKey, NDArray[np.int32]]:
        """See `SearchBackend`."""
        return self._cluster.sample_radii(queries)

    def end_searches(self) -> None:
        """End the index processes, so that later tasks can use their cores."""
        self._cluster.close()

    def listed_edges(self, code: int, radius: float) -> Edges:
        """See `SearchBackend`."""
        task, copies = ray.remote(_listed_edges).options(num_cpus=1), ray.put(self.copies)
        parts = [task.remote(self.results, chunk, copies, code, radius) for chunk in range(len(self._chunks))]
        return distinct_edges(ray.get(parts))

    def join(self, codes: Sequence[int], radius: float) -> tuple[JoinResult, dict[str, Any]]:
        """See `SearchBackend`."""
        files = JoinFiles(self._reader, f"join-{self._joins}-{radius:.17g}")
        self._joins += 1
        shards = [shard for chunk in self._chunks for shard in chunk]
        return CellJoin(files, shards, self._scanned, self._gpu_pool, self._memory_bytes).run(codes, radius)

    def rows_near_real(self, code: int, radius: float) -> Rows:
        """See `SearchBackend`."""
        task = ray.remote(_rows_near_real).options(num_cpus=1)
        parts = ray.get([task.remote(self.results, chunk, code, radius) for chunk in range(len(self._chunks))])
        return np.concatenate([np.empty(0, np.int64), *parts])

    def share_deviations(self, codes: Sequence[int]) -> dict[int, dict[str, Blocks]]:
        """See `SearchBackend`."""
        task, scanned = ray.remote(_share_deviations).options(num_cpus=1), ray.put(self._scanned)
        parts = [task.remote(scanned, self._space, code) for code in codes]
        return dict(zip(codes, ray.get(parts), strict=True))

    def lookup(self) -> RowLookup:
        """See `SearchBackend`."""
        return RowLookup(self._reader, self._chunks, self._pool)


def _listed_edges(results: SearchResults, chunk: int, copies: Copies, code: int, radius: float) -> Edges:
    found = results.knn(chunk)
    searches = ViewSearches(*(found[pair] for pair in view_pairs(code)))
    return listed_edges(searches, copies, radius, (0, code))


def _rows_near_real(results: SearchResults, chunk: int, code: int, radius: float) -> Rows:
    found = results.knn(chunk)[SetPair(code, 0)]
    return found.row[found.distance[:, 0] < radius]


def _share_deviations(scanned: CopyScan, space: SearchSpace, code: int) -> dict[str, Blocks]:
    counts = dict(zip((0, code), sample_rows(scanned.distinct[0], scanned.distinct[code]), strict=True))
    drawn = sample_distinct(scanned, counts)
    blocks = [drawn.of_set(number) for number in (0, code)]
    real, own = (normalized(space(block.vectors), space.metric) for block in blocks)
    return share_deviations(real, own, (blocks[0].id_hash, blocks[1].id_hash), K)
