"""The last step of the neighbors stage: write ``neighbors/``, ``nearest/`` and ``groups/``.

Each task writes the three tables of one chunk, a group of consecutive shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from synthscale.neighbors import arrow_tables
from synthscale.neighbors.analysis import SearchSummary, view_neighbors
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Edges
from synthscale.neighbors.embedding_reader import EmbeddingReader
from synthscale.neighbors.knn_search import KnnResult
from synthscale.neighbors.ray_index_actors import SearchResults
from synthscale.neighbors.search_backend import RadiusKey, SetPair
from synthscale.neighbors.view import NeighborView, RadiusCounts, nearest_rows
from synthscale.runtime.task_pool import TaskPool
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import GROUPS, NEAREST, NEIGHBORS

_Knn = dict[SetPair, KnnResult]
_Counts = dict[RadiusKey, RadiusCounts]
_Found = tuple[_Knn, _Knn, _Counts]
"""Nearest rows of some rows in the space of near-duplicates; k-NN results and counts in that of the manifold."""


@dataclass(frozen=True)
class SavedSearches:
    """The saved results of the searches in both spaces, which may be the same.

    Attributes:
        near: in the space of near-duplicates.
        manifold: in the space of the manifold metrics.
    """

    near: SearchResults
    manifold: SearchResults

    @property
    def reader(self) -> EmbeddingReader:
        """The run's embeddings."""
        return self.near.reader

    @property
    def chunks(self) -> list[list[Shard]]:
        """Groups of shards whose rows were searched together."""
        return self.near.chunks

    def of_chunk(self, chunk: int) -> _Found:
        """Return the results of a chunk's rows."""
        near = self.near.knn(chunk)
        is_same = self.manifold is self.near
        return near, near if is_same else self.manifold.knn(chunk), self.manifold.radii(chunk)


@dataclass(frozen=True)
class _Shared:
    """Arguments that the tasks of all chunks share.

    Attributes:
        copies: exact copies within each set.
        redundant: rows that are exact copies of a row with a smaller id.
        searches: recall of the searches.
    """

    copies: Copies
    redundant: Rows
    searches: SearchSummary


def write_tables(
    searched: SavedSearches,
    copies: Copies,
    searches: SearchSummary,
    edges: Edges,
    views: dict[int, NeighborView],
    pool: TaskPool,
) -> None:
    """Write the three tables.

    Args:
        searched: the saved search results.
        copies: exact copies within each set.
        searches: recall of the searches.
        edges: edges of all views, each once, ascending.
        views: the generators' views, by code.
        pool: runs the tasks.
    """
    pick, ids = ray.remote(_pick).options(num_cpus=1), ray.remote(_ids).options(num_cpus=1)
    in_chunk = [(i, chunk, _of_chunk(copies.row, chunk)) for i, chunk in enumerate(searched.chunks)]
    with_copies = [(i, chunk, rows) for i, chunk, rows in in_chunk if len(rows)]
    # Copies take the results of their representative, which may lie in another chunk.
    picked = [pick.remote(searched, i, np.intersect1d(rows, copies.representative)) for i, _, rows in with_copies]
    named = ray.get([ids.remote(searched.reader, chunk, rows) for _, chunk, rows in with_copies])
    redundant = copies.redundant_rows({row: name for part in named for row, name in part.items()})
    shared = ray.put(_Shared(copies, redundant, searches))
    task = ray.remote(_write_chunk).options(num_cpus=1)

    def submit(number: int) -> Any:
        chunk = searched.chunks[number]
        bounds = [chunk[0].start, chunk[-1].stop]
        own_edges = edges[slice(*np.searchsorted(edges.left, bounds))]
        groups = {
            code: arrow_tables.groups(
                view.generator, view.groups, slice(*np.searchsorted(view.groups.row, bounds))
            )
            for code, view in views.items()
        }
        return task.remote(searched, number, shared, own_edges, groups, *picked)

    for _ in pool.run(range(len(searched.chunks)), submit, "tables written: chunks"):
        pass


def _of_chunk(rows: Rows, chunk: Sequence[Shard]) -> Rows:
    return rows[slice(*np.searchsorted(rows, [chunk[0].start, chunk[-1].stop]))]


def _ids(reader: EmbeddingReader, chunk: list[Shard], rows: Rows) -> dict[int, str]:
    table = pa.concat_tables(reader.run.read_shard("manifest", shard, ["id"]) for shard in chunk)
    at = rows - chunk[0].start
    return dict(zip(rows.tolist(), table.column("id").take(pa.array(at)).to_pylist(), strict=True))


def _pick(searched: SavedSearches, chunk: int, rows: Rows) -> _Found:
    """Return the results of the given rows of a chunk."""
    near, manifold, counts = searched.of_chunk(chunk)
    return _knn_of(near, rows), _knn_of(manifold, rows), _counts_of(counts, rows)


def _knn_of(results: _Knn, rows: Rows) -> _Knn:
    picked = {}
    for pair, result in results.items():
        own = np.isin(result.row, rows)
        picked[pair] = KnnResult(result.row[own], result.distance[own], result.neighbor[own])
    return picked


def _counts_of(counts: _Counts, rows: Rows) -> _Counts:
    picked = {}
    for key, count in counts.items():
        own = np.isin(count.row, rows)
        picked[key] = RadiusCounts(count.row[own], count.count[own])
    return picked


def _write_chunk(
    searched: SavedSearches,
    number: int,
    shared: _Shared,
    edges: Edges,
    groups: dict[int, pa.Table],
    *picked: _Found,
) -> None:
    """Write a chunk's shards of the three tables.

    ``picked`` has the search results of representatives of copies, which may lie in other chunks.
    """
    near, manifold, counts = _merged([searched.of_chunk(number), *picked])
    chunk, names = searched.chunks[number], searched.reader.names
    block = searched.reader.rows(chunk)
    real = block.row[block.code == 0]
    views = []
    for code in groups:
        own = block.row[block.code == code]
        found = nearest_rows(
            view_neighbors(code, near, (manifold, counts), shared.searches), shared.copies, real, own
        )
        views.append(arrow_tables.nearest(names[code], found, shared.redundant))
    nearest = pa.concat_tables(views)
    nearest = nearest.take(pa.array(np.argsort(nearest.column("row").to_numpy(), kind="stable")))
    members = pa.concat_tables(groups.values())
    members = members.take(pa.array(np.argsort(members.column("row").to_numpy(), kind="stable")))
    for table, key, name, schema in (
        (arrow_tables.edges(edges), "left", "neighbors", NEIGHBORS),
        (nearest, "row", "nearest", NEAREST),
        (members, "row", "groups", GROUPS),
    ):
        rows = table.column(key).to_numpy()
        for shard in chunk:
            low, high = np.searchsorted(rows, [shard.start, shard.stop])
            searched.reader.run.write_shard(name, shard, table.slice(low, high - low), schema)


def _merged(parts: list[_Found]) -> _Found:
    """Merge the results of a chunk's rows and of representatives of copies, each row once."""
    near, manifold = _merged_knn([part[0] for part in parts]), _merged_knn([part[1] for part in parts])
    counts = {}
    for key in parts[0][2]:
        row, first = np.unique(np.concatenate([p[2][key].row for p in parts]), return_index=True)
        counts[key] = RadiusCounts(row, np.concatenate([p[2][key].count for p in parts])[first])
    return near, manifold, counts


def _merged_knn(parts: Sequence[_Knn]) -> _Knn:
    results = {}
    for pair in parts[0]:
        row, first = np.unique(np.concatenate([part[pair].row for part in parts]), return_index=True)
        distance = np.concatenate([part[pair].distance for part in parts])[first]
        neighbor = np.concatenate([part[pair].neighbor for part in parts])[first]
        results[pair] = KnnResult(row, distance, neighbor)
    return results
