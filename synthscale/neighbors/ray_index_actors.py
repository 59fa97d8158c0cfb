"""An actor that holds the FAISS indexes of one part of the rows, and the files that its answers lie in.

A part is some of the shards. Its indexes are written under ``index/`` for later queries, and read back from there.
What a chunk of queries found in it lies under ``_neighbors/`` until the stage ends; reading merges the parts.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

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
from synthscale.neighbors.view import K, RadiusCounts
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import Shard

_READ_ROWS = 8192
_FEWEST_QUERIES = 512

SetPair = tuple[int, int]
"""Codes of the set that asks and the set that is searched."""


def view_pairs(code: int) -> list[SetPair]:
    """Return the pairs of sets in a generator's view, in the order of ``Searches``."""
    return [(0, 0), (0, code), (code, 0), (code, code)]


@dataclass(frozen=True)
class KnnQuery:
    """What one set asks of another: k nearest, through so many cells."""

    query: int
    database: int
    k: int
    probes: int


RadiusKey = tuple[int, int, bool]
"""Codes of the set that asks and the set that is searched; whether the radii are those of the rows that ask."""


@dataclass(frozen=True)
class RadiusQuery:
    """What is asked of radii: through so many cells, and right up to so many of them that hold a row."""

    probes: int
    most: int


class PerQueryRadius(NamedTuple):
    """What is asked of the radii of rows that ask: through so many cells, and what each row there counts for."""

    probes: int
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class IndexPart:
    """Some of the shards, which one actor holds at a time."""

    number: int
    of: int
    shards: list[Shard]
    sets: "SetReferences"

    @property
    def name(self) -> str:
        """Names the part's files under ``index/``."""
        return f"part-{self.number:05d}-of-{self.of:05d}"


@dataclass(frozen=True)
class SetReferences:
    """References to the copies of all sets, and to each large set's empty index (None: a small set)."""

    copies: Any
    trained: tuple[tuple[int, Any], ...]


def result_name(what: str, chunk: int, part: int, of: int) -> str:
    """Return where a part's answers to a chunk lie; another number of parts mixes nothing up."""
    return f"{what}-of-{of}/chunk-{chunk:06d}-part-{part:05d}"


class IndexActor:
    """The indexes of one part at a time: of every set, its distinct rows there."""

    def __init__(self, tables: EmbeddingReader, chunks: list[list[Shard]], threads: int) -> None:
        """Take the run's tables and the chunks of its shards."""
        # The threads are ours: each multiplies its own matrices.
        faiss.omp_set_num_threads(1)
        self._tables, self._chunks, self._threads = tables, chunks, threads
        self._pool = ThreadPoolExecutor(threads)
        self._shortlist = filter_for(len(ray.get_gpu_ids()))
        self._part: IndexPart | None = None
        self._copies: Copies | None = None
        self._indexes: dict[int, Index] = {}
        self._radii: dict[int, Floats] = {}

    def nearest(self, part: IndexPart, chunk: int, questions: list[KnnQuery]) -> None:
        """Find the nearest rows of a chunk's rows in a part, and save them."""
        self._hold(part)
        block = self._tables.block(self._chunks[chunk], self._copies)
        arrays: dict[str, NDArray[Any]] = {}
        for question, (distance, neighbor) in zip(questions, self.ask(part, block, questions), strict=True):
            key = f"{question.query}-{question.database}"
            arrays[f"{key}-row"] = block.row[block.code == question.query]
            arrays[f"{key}-distance"], arrays[f"{key}-neighbor"] = distance, neighbor
        self._tables.save(result_name("nearest", chunk, part.number, part.of), arrays)

    def inside(self, part: IndexPart, chunk: int, asked: dict[RadiusKey, RadiusQuery]) -> None:
        """Find how many radii of a part's rows hold a chunk's rows, and save it."""
        self._hold(part)
        block = self._tables.block(self._chunks[chunk], self._copies)
        arrays: dict[str, NDArray[Any]] = {}
        for (query, database, by_query), count in self.ask_inside(part, block, asked).items():
            arrays[f"{query}-{database}-{int(by_query)}-row"] = block.row[block.code == query]
            arrays[f"{query}-{database}-{int(by_query)}-inside"] = count
        self._tables.save(result_name("inside", chunk, part.number, part.of), arrays)

    def ask(self, part: IndexPart, block: EmbeddingBlock, questions: list[KnnQuery]) -> list[tuple[Floats, Rows]]:
        """Return the nearest rows in a part, to each question by the rows of a block that it concerns."""
        self._hold(part)
        answers = []
        for question in questions:
            own = block.of_set(question.query)
            index = self._indexes[question.database]
            ask = partial(_search, index, own, question)
            found = self._in_threads(ask, len(own.row))
            answers.append((np.concatenate([d for d, _ in found]), np.concatenate([r for _, r in found])))
        return answers

    def _in_threads(self, work: Callable[[slice], Any], n: int) -> list[Any]:
        """Let threads share n queries: most of a search is array work, which runs beside that of other threads."""
        step = max(_FEWEST_QUERIES, -(-n // self._threads))
        return list(self._pool.map(work, [slice(i, i + step) for i in range(0, max(1, n), step)]))

    def ask_inside(
        self, part: IndexPart, block: EmbeddingBlock, asked: dict[RadiusKey, RadiusQuery]
    ) -> dict[RadiusKey, NDArray[np.int32]]:
        """Return how many radii of a part's rows hold the rows of a block, or what their own radii hold there."""
        self._hold(part)
        result = {}
        for (query, database, by_query), covering in asked.items():
            own, index = block.of_set(query), self._indexes[database]
            how: RadiusQuery | PerQueryRadius = covering
            if by_query:
                assert self._copies is not None
                radii = self._radii_of(own.row, query, part.of)
                how = PerQueryRadius(covering.probes, self._copies.counts(index.rows))
            else:
                if database not in self._radii:
                    self._radii[database] = self._radii_of(index.rows, database, part.of)
                radii = self._radii[database]
            ask = partial(_search_inside, index, own, radii, how)
            result[query, database, by_query] = np.concatenate(self._in_threads(ask, len(own.row)))
        return result

    def _hold(self, part: IndexPart) -> None:
        """Hold a part: read what was saved of it, or build and save it. Small sets are indexed anew."""
        if self._part is not None and part.number == self._part.number:
            return
        self._indexes, self._radii, self._part = {}, {}, None
        self._copies = ray.get(part.sets.copies)
        cells = {code: ray.get(trained) for code, trained in part.sets.trained if trained is not None}
        saved = {code for code in cells if fsys.exists(self._path(part, code), self._tables.run.storage)}
        built = {code: CellIndex(cells[code], self._shortlist) for code in cells if code not in saved}
        flat: dict[int, list[EmbeddingBlock]] = {code: [] for code, _ in part.sets.trained if code not in cells}
        for shards in group_shards(part.shards, _READ_ROWS) if built or flat else []:
            block = self._tables.block(shards, self._copies)
            for code, index in built.items():
                own = block.of_set(code)
                index.add(own.vectors, own.row)
            for code, kept in flat.items():
                kept.append(block.of_set(code))
        for code in saved:
            self._indexes[code] = self._read(self._path(part, code))
        self._indexes |= built
        for code, blocks in flat.items():
            vectors, rows = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("vectors", "row"))
            self._indexes[code] = FlatIndex(vectors, rows)
        for code in (*built, *flat):
            fsys.write_with(self._path(part, code), self._indexes[code].write, self._tables.run.storage)
        self._part = part

    def _path(self, part: IndexPart, code: int) -> str:
        return self._tables.run.path("index", f"{part.name}.{self._tables.names[code]}.faiss")

    def _read(self, path: str) -> CellIndex:
        if not fsys.is_s3(path):
            return CellIndex.read(path, self._shortlist)
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "index")
            with fsys.storage_errors(path, "read"):
                fsys.filesystem(path, self._tables.run.storage).get_file(path, local)
            return CellIndex.read(local, self._shortlist)

    def _radii_of(self, rows: Rows, code: int, parts: int) -> Floats:
        """Return the k-NN radii of rows of a set, from what the chunks found in all parts."""
        radii = np.full(len(rows), -np.inf)
        answers = SearchResults(self._tables, self._chunks, parts)
        order = np.argsort(rows)
        for chunk, shards in enumerate(self._chunks):
            low, high = np.searchsorted(rows[order], [shards[0].start, shards[-1].stop])
            if low < high:
                own = order[low:high]
                relation = answers.relations(chunk)[code, code]
                radii[own] = relation.radius(K)[np.searchsorted(relation.row, rows[own])]
        return radii


def _search(index: Index, block: EmbeddingBlock, question: KnnQuery, part: slice) -> tuple[Floats, Rows]:
    return search_knn(index, block.vectors[part], block.row[part], question.k, question.probes)


def _search_inside(
    index: Index, block: EmbeddingBlock, radii: Floats, covering: RadiusQuery | PerQueryRadius, part: slice
) -> NDArray[np.int32]:
    vectors, rows = block.vectors[part], block.row[part]
    if isinstance(covering, PerQueryRadius):
        return count_within_radius(index, vectors, rows, radii[part], *covering)
    return count_radii_containing(index, vectors, rows, radii, covering.probes, covering.most)


@dataclass(frozen=True)
class SearchResults:
    """What the chunks of a run found in the parts of its index; picklable."""

    tables: EmbeddingReader
    chunks: list[list[Shard]]
    parts: int

    def relations(self, chunk: int) -> dict[SetPair, KnnResult]:
        """Return what a chunk's rows found in each set, merged over the parts."""
        answers = self._load("nearest", chunk)
        relations = {}
        for key in (name.removesuffix("-row") for name in answers[0] if name.endswith("-row")):
            query, database = (int(code) for code in key.split("-"))
            found = [(answer[f"{key}-distance"], answer[f"{key}-neighbor"]) for answer in answers]
            merged = merge_nearest(found, found[0][0].shape[1])
            relations[query, database] = KnnResult(answers[0][f"{key}-row"], *merged)
        return relations

    def inside(self, chunk: int) -> dict[RadiusKey, RadiusCounts]:
        """Return how many radii hold a chunk's rows, or what their own radii hold."""
        answers = self._load("inside", chunk)
        found = {}
        for key in (name.removesuffix("-row") for name in answers[0] if name.endswith("-row")):
            query, database, by_query = (int(code) for code in key.split("-"))
            count = np.sum([answer[f"{key}-inside"] for answer in answers], axis=0)
            found[query, database, bool(by_query)] = RadiusCounts(answers[0][f"{key}-row"], count)
        return found

    def _load(self, what: str, chunk: int) -> list[dict[str, NDArray[Any]]]:
        return [self.tables.load(result_name(what, chunk, part, self.parts)) for part in range(self.parts)]
