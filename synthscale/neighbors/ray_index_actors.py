"""Ray actor that holds the FAISS indexes of one part of the rows, and access to its saved results.

A part is some of the shards. Its indexes are written and read back: those of near-duplicates under ``index/``, for
later queries, those of the manifold metrics with the intermediate results.
A chunk is a group of consecutive shards whose rows are searched together as queries. Its results lie under
``_neighbors/`` until the stage ends; `SearchResults` merges those of all parts.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import faiss
import numpy as np
import ray
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import filter_for
from synthscale.neighbors.cell_index import CellIndex
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Floats, Rows
from synthscale.neighbors.embedding_reader import EmbeddingBlock, EmbeddingReader, group_shards
from synthscale.neighbors.flat_index import FlatIndex
from synthscale.neighbors.knn_search import (
    Index,
    KnnResult,
    count_radii_containing,
    count_within_radius,
    merge_nearest,
    search_knn,
)
from synthscale.neighbors.search_backend import KnnQuery, RadiusKey, RadiusQuery, SetPair
from synthscale.neighbors.search_files import pack_counts, pack_knn, unpack_counts, unpack_knn
from synthscale.neighbors.search_space import NEAR_DUPLICATES, SearchSpace
from synthscale.neighbors.view import K, RadiusCounts
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import DistanceMetric, Shard

_READ_ROWS = 8192
"""Rows read at a time while an index is built."""
_FEWEST_QUERIES = 512
"""Minimum number of queries per thread; smaller matrix products are inefficient."""


@dataclass(frozen=True)
class IndexPart:
    """Some of the shards; an actor holds the indexes of one part at a time.

    Attributes:
        number: number of the part, from 0.
        of: number of parts.
        shards: shards of the part.
        sets: data of all sets that every part needs.
        space: the space of its indexes.
    """

    number: int
    of: int
    shards: list[Shard]
    sets: "SetReferences"
    space: SearchSpace

    @property
    def name(self) -> str:
        """Prefix of the part's files under ``index/``."""
        return f"part-{self.number:05d}-of-{self.of:05d}"


@dataclass(frozen=True)
class SetReferences:
    """Ray references to data of all sets.

    Attributes:
        copies: reference to the `Copies`.
        trained: set code, and reference to the trained empty index; None for a small set, which gets a flat index.
    """

    copies: Any
    trained: tuple[tuple[int, Any], ...]


def result_name(what: str, chunk: int, part: int, of: int) -> str:
    """Return the name under which the results of a chunk's queries in a part are saved.

    It includes the number of parts, so that a rerun with another number does not reuse them.
    """
    return f"{what}-of-{of}/chunk-{chunk:06d}-part-{part:05d}"


class IndexHolder:
    """Holds the indexes of one part at a time, one index for each set's distinct rows in the part."""

    def __init__(
        self, reader: EmbeddingReader, chunks: list[list[Shard]], threads: int = 1, gpus: int = 0
    ) -> None:
        """Take the run's embeddings, the chunks of its shards, and the threads and GPUs to search with."""
        self._run_reader = self._reader = reader
        self._chunks, self._threads = chunks, threads
        self._pool = ThreadPoolExecutor(threads)
        self._candidate_filter = filter_for(gpus)
        self._part: IndexPart | None = None
        self._copies: Copies | None = None
        self._indexes: dict[int, Index] = {}
        self._radii: dict[int, Floats] = {}

    def nearest(self, part: IndexPart, chunk: int, queries: list[KnnQuery]) -> None:
        """Search a chunk's rows in a part, and save the results."""
        self._hold(part)
        block = self._reader.block(self._chunks[chunk], self._copies)
        found = zip(queries, self.knn(part, block, queries), strict=True)
        results = {
            query.pair: KnnResult(block.row[block.code == query.query], distance, neighbor)
            for query, (distance, neighbor) in found
        }
        self._reader.save(result_name("nearest", chunk, part.number, part.of), pack_knn(results))

    def radii(self, part: IndexPart, chunk: int, queries: dict[RadiusKey, RadiusQuery]) -> None:
        """Run radius counts (see `count_radii`) of a chunk's rows in a part, and save them."""
        self._hold(part)
        block = self._reader.block(self._chunks[chunk], self._copies)
        counts = {
            key: RadiusCounts(block.row[block.code == key.query], count)
            for key, count in self.count_radii(part, block, queries).items()
        }
        self._reader.save(result_name("radii", chunk, part.number, part.of), pack_counts(counts))

    def knn(self, part: IndexPart, block: EmbeddingBlock, queries: list[KnnQuery]) -> list[tuple[Floats, Rows]]:
        """Return the k nearest rows in a part of the block's rows of each query set.

        Returns:
            For each query, distances and row numbers, (m, k) each.
        """
        self._hold(part)
        results = []
        for query in queries:
            own = block.of_set(query.query)
            found = self._in_threads(partial(_search, self._indexes[query.database], own, query), len(own.row))
            results.append((np.concatenate([d for d, _ in found]), np.concatenate([r for _, r in found])))
        return results

    def _in_threads(self, work: Callable[[slice], Any], n: int) -> list[Any]:
        """Split n queries over threads (NumPy and FAISS release the GIL in their products)."""
        step = max(_FEWEST_QUERIES, -(-n // self._threads))
        return list(self._pool.map(work, [slice(i, i + step) for i in range(0, max(1, n), step)]))

    def count_radii(
        self, part: IndexPart, block: EmbeddingBlock, queries: dict[RadiusKey, RadiusQuery]
    ) -> dict[RadiusKey, NDArray[np.int32]]:
        """Count, for each of the block's rows of a query set, the rows of the part whose radius contains it: (m,).

        With ``is_query_radius``, count the rows of the part, copies included, within the query's own radius.
        """
        self._hold(part)
        counts = {}
        for key, query in queries.items():
            own, index = block.of_set(key.query), self._indexes[key.database]
            if key.is_query_radius:
                assert self._copies is not None
                radii = self._radii_of(own.row, key.query, part.of)
                search = partial(_count_within, index, own, radii, query, self._copies.counts(index.rows))
            else:
                if key.database not in self._radii:
                    self._radii[key.database] = self._radii_of(index.rows, key.database, part.of)
                search = partial(_count_containing, index, own, self._radii[key.database], query)
            counts[key] = np.concatenate(self._in_threads(search, len(own.row)))
        return counts

    def _hold(self, part: IndexPart) -> None:
        """Load a part's indexes, or build and save them. Small sets are always indexed anew."""
        if self._part is not None and (part.number, part.space.name) == (self._part.number, self._part.space.name):
            return
        self._indexes, self._radii, self._part = {}, {}, None
        self._reader = replace(self._run_reader, space=part.space)
        self._copies = ray.get(part.sets.copies)
        cells = {code: ray.get(trained) for code, trained in part.sets.trained if trained is not None}
        saved = {code for code in cells if fsys.exists(self._path(part, code), self._reader.run.storage)}
        built = {
            code: CellIndex(cells[code], self._candidate_filter, part.space.metric)
            for code in cells
            if code not in saved
        }
        flat: dict[int, list[EmbeddingBlock]] = {code: [] for code, _ in part.sets.trained if code not in cells}
        for shards in group_shards(part.shards, _READ_ROWS) if built or flat else []:
            block = self._reader.block(shards, self._copies)
            for code, index in built.items():
                own = block.of_set(code)
                index.add(own.vectors, own.row)
            for code, kept in flat.items():
                kept.append(block.of_set(code))
        for code in saved:
            self._indexes[code] = self._read(self._path(part, code), part.space.metric)
        self._indexes |= built
        for code, blocks in flat.items():
            vectors, rows = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("vectors", "row"))
            self._indexes[code] = FlatIndex(vectors, rows, part.space.metric)
        for code in (*built, *flat):
            fsys.write_with_callback(self._path(part, code), self._indexes[code].write, self._reader.run.storage)
        self._part = part

    def _path(self, part: IndexPart, code: int) -> str:
        name = f"{part.name}.{self._reader.names[code]}.faiss"
        is_kept = part.space.name == NEAR_DUPLICATES
        return self._reader.run.path("index", name) if is_kept else self._reader.path("index", name)

    def _read(self, path: str, metric: DistanceMetric) -> CellIndex:
        if not fsys.is_s3(path):
            return CellIndex.read(path, self._candidate_filter, metric)
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "index")
            storage = self._reader.run.storage
            fsys.attempt(path, "read", storage, lambda: fsys.filesystem(path, storage).get_file(path, local))
            return CellIndex.read(local, self._candidate_filter, metric)

    def _radii_of(self, rows: Rows, code: int, parts: int) -> Floats:
        """Return the k-NN radii of rows of a set, from the saved results of all parts."""
        radii = np.full(len(rows), -np.inf)
        results = SearchResults(self._reader, self._chunks, parts)
        order = np.argsort(rows)
        for chunk, shards in enumerate(self._chunks):
            low, high = np.searchsorted(rows[order], [shards[0].start, shards[-1].stop])
            if low < high:
                own = order[low:high]
                result = results.knn(chunk)[SetPair(code, code)]
                radii[own] = result.radius(K)[np.searchsorted(result.row, rows[own])]
        return radii


class IndexActor(IndexHolder):
    """An `IndexHolder` in a process of its own."""

    def __init__(self, reader: EmbeddingReader, chunks: list[list[Shard]], threads: int) -> None:
        """Take the run's embeddings, the chunks of its shards, and the number of threads."""
        # Each of our threads runs its own products, so FAISS needs no threads of its own.
        faiss.omp_set_num_threads(1)
        super().__init__(reader, chunks, threads, len(ray.get_gpu_ids()))


def _search(index: Index, block: EmbeddingBlock, query: KnnQuery, part: slice) -> tuple[Floats, Rows]:
    return search_knn(index, block.vectors[part], block.row[part], query.k, query.probes)


def _count_containing(
    index: Index, block: EmbeddingBlock, radii: Floats, query: RadiusQuery, part: slice
) -> NDArray[np.int32]:
    return count_radii_containing(index, block.vectors[part], block.row[part], radii, query.probes, query.most)


def _count_within(
    index: Index,
    block: EmbeddingBlock,
    radii: Floats,
    query: RadiusQuery,
    weights: NDArray[np.int64],
    part: slice,
) -> NDArray[np.int32]:
    vectors, rows = block.vectors[part], block.row[part]
    return count_within_radius(index, vectors, rows, radii[part], weights, query)


@dataclass(frozen=True)
class SearchResults:
    """The saved results of a run's searches by chunk of queries, merged over the index's parts; picklable."""

    reader: EmbeddingReader
    chunks: list[list[Shard]]
    parts: int

    def knn(self, chunk: int) -> dict[SetPair, KnnResult]:
        """Return the nearest rows of a chunk's rows in each set."""
        parts = [unpack_knn(arrays) for arrays in self._load("nearest", chunk)]
        merged = {}
        for pair, first in parts[0].items():
            found = [(part[pair].distance, part[pair].neighbor) for part in parts]
            merged[pair] = KnnResult(first.row, *merge_nearest(found, first.distance.shape[1]))
        return merged

    def radii(self, chunk: int) -> dict[RadiusKey, RadiusCounts]:
        """Return the radius counts of a chunk's rows, summed over parts."""
        parts = [unpack_counts(arrays) for arrays in self._load("radii", chunk)]
        return {
            key: RadiusCounts(first.row, np.sum([part[key].count for part in parts], axis=0))
            for key, first in parts[0].items()
        }

    def _load(self, what: str, chunk: int) -> list[dict[str, NDArray[Any]]]:
        return [self.reader.load(result_name(what, chunk, part, self.parts)) for part in range(self.parts)]
