"""Neighbors: ``embeddings/`` -> ``neighbors/`` (edges), ``nearest/`` and ``groups/``, over FAISS shards in actors.

Each actor holds the flat indexes of some row ranges and answers every query shard; the driver merges numbers and
never sees a vector. What is searched, and why, stands in ``synthscale.neighbors``.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from synthscale import tables
from synthscale.groups import collapse_copies, vector_keys
from synthscale.neighbors import Analysis, Members, analyse
from synthscale.schemas import GROUPS, NEAREST, NEIGHBORS, REAL, Layout, Shard
from synthscale.search import FlatIndex, Floats, Pairs, Rows, unit
from synthscale.stages.context import Outcome, StageContext
from synthscale.storage import RunDirectory

_CACHED_SHARDS = 64
_CHUNK_ROWS = 8192


def fingerprint(context: StageContext) -> dict[str, Any]:
    """Return what edges and groups depend on."""
    return {
        "input": context.run.completed("embed").digest,
        "settings": context.config.result_settings("neighbors"),
        "versions": {"algorithm": 1},
    }


def run(context: StageContext) -> Outcome:
    """Find near-duplicates, nearest rows and manifold indicators for every generator's view."""
    searcher = RaySearcher(context)
    sets = searcher.collapse()
    analysis = analyse(searcher, sets, context.config.neighbors)
    searcher.close()
    _write(context, sets, analysis)
    info = {"views": {view.generator: view.summary() for view in analysis.views}}
    pairs = sum(len(edges.left) for edges in analysis.edges.values())
    return Outcome({"rows": sum(len(m.rows) for m in sets.values()), "edges": pairs}, info)


# The search, sharded over actors.


class RaySearcher:
    """A Searcher whose flat indexes lie in Ray actors, each over some of the row ranges."""

    def __init__(self, context: StageContext) -> None:
        """Start the actors; about four cores each, so that FAISS can use its threads."""
        self._shards = context.shards
        self._names = [REAL, *context.generators]
        count = max(1, min(context.cpus // 4, len(self._shards)))
        actor = ray.remote(_SearchActor).options(num_cpus=1)
        threads = max(1, context.cpus // count)
        # Every other shard, so that no actor holds one set alone.
        self._actors = [
            actor.remote(context.run, self._shards[i::count], context.layout, self._names, threads)
            for i in range(count)
        ]
        self._chunks = self._chunked()

    def collapse(self) -> dict[str, Members]:
        """Collapse each set's exact copies (equal file contents or equal vectors), and index what is left."""
        keys = ray.get([actor.keys.remote() for actor in self._actors])
        rows, codes, contents, vectors = (np.concatenate(column) for column in zip(*keys, strict=True))
        order = np.argsort(rows)
        sets = {}
        for code, name in enumerate(self._names):
            own = order[codes[order] == code]
            sets[name] = Members(rows[own], collapse_copies(rows[own], contents[own], vectors[own]))
        distinct = ray.put({name: members.distinct for name, members in sets.items()})
        ray.get([actor.index.remote(distinct) for actor in self._actors])
        return sets

    def _chunked(self) -> list[list[Shard]]:
        chunks: list[list[Shard]] = [[]]
        for shard in self._shards:
            if chunks[-1] and shard.stop - chunks[-1][0].start > _CHUNK_ROWS:
                chunks.append([])
            chunks[-1].append(shard)
        return chunks

    def _ask(self, method: str, *arguments: Any) -> list[list[Any]]:
        """Put a question to all actors for all query chunks; answers by chunk, then by actor."""
        asked = [
            [getattr(actor, method).remote(chunk, *arguments) for actor in self._actors] for chunk in self._chunks
        ]
        return [ray.get(answers) for answers in asked]

    def nearest(self, query: str, database: str, k: int) -> tuple[Floats, Rows]:
        """See Searcher."""
        merged = []
        for answers in self._ask("nearest", query, database, k):
            distances = np.concatenate([d for d, _ in answers], axis=1)
            rows = np.concatenate([r for _, r in answers], axis=1)
            order = np.lexsort((rows, distances), axis=1)[:, :k]
            merged.append((np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)))
        return np.concatenate([d for d, _ in merged]), np.concatenate([r for _, r in merged])

    def within(self, query: str, database: str, radius: float) -> Pairs:
        """See Searcher."""
        parts = [part for answers in self._ask("within", query, database, radius) for part in answers]
        return Pairs(
            *(np.concatenate([getattr(p, name) for p in parts]) for name in ("left", "right", "distance"))
        )

    def inside(self, query: str, database: str, radii: Floats) -> NDArray[np.bool_]:
        """See Searcher."""
        shared = ray.put(radii)
        return np.concatenate(
            [np.logical_or.reduce(answers) for answers in self._ask("inside", query, database, shared)]
        )

    def close(self) -> None:
        """End the actors, so that the next stage has their cores."""
        for actor in self._actors:
            ray.kill(actor)


class _SearchActor:
    """Flat indexes of the distinct rows of every set, over some row ranges."""

    def __init__(
        self, run: RunDirectory, shards: list[Shard], layout: Layout, names: list[str], threads: int
    ) -> None:
        faiss.omp_set_num_threads(threads)
        self._run, self._own, self._layout, self._names = run, shards, layout, names
        self._cache: OrderedDict[int, tuple[Rows, NDArray[np.float32]]] = OrderedDict()
        self._distinct: dict[str, Rows] = {}
        self._indexes: dict[str, FlatIndex] = {}

    def keys(self) -> tuple[Rows, NDArray[np.int64], NDArray[np.bytes_], NDArray[np.bytes_]]:
        """Return the actor's rows, the number of each one's set, and hashes of file contents and of vectors."""
        codes = {name: code for code, name in enumerate(self._names)}
        rows, own, contents, hashes = [], [], [], []
        for shard in self._own:
            numbers, vectors = self._shard(shard)
            hashes.append(vector_keys(vectors))
            table = self._run.read_shard("embeddings", shard, ["content_hash"])
            contents += [(text or "").encode() for text in table.column("content_hash").to_pylist()]
            generators = self._run.read_shard("manifest", shard, ["generator"]).column("generator").to_pylist()
            own += [codes[generators[row - shard.start] or REAL] for row in numbers.tolist()]
            rows.append(numbers)
        return np.concatenate(rows), np.array(own, np.int64), np.array(contents, "S32"), np.concatenate(hashes)

    def index(self, distinct: dict[str, Rows]) -> None:
        """Index this actor's part of the distinct rows of every set."""
        self._distinct = distinct
        for name in distinct:
            rows, vectors = self._read(self._own, name)
            self._indexes[name] = FlatIndex(vectors, rows)

    def _read(self, shards: list[Shard], name: str) -> tuple[Rows, NDArray[np.float32]]:
        """Distinct rows of a set in some shards, and their search vectors."""
        pieces = [self._shard(shard) for shard in shards]
        rows = np.concatenate([r for r, _ in pieces])
        wanted = np.isin(rows, self._distinct[name], assume_unique=True)
        return rows[wanted], np.concatenate([v for _, v in pieces])[wanted]

    def _shard(self, shard: Shard) -> tuple[Rows, NDArray[np.float32]]:
        if shard.index not in self._cache:
            table = self._run.read_shard("embeddings", shard, ["row", "vector"])
            self._cache[shard.index] = (table.column("row").to_numpy(), tables.vectors(table, self._layout.search))
            if len(self._cache) > _CACHED_SHARDS:
                self._cache.popitem(last=False)
        return self._cache[shard.index]

    def nearest(self, chunk: list[Shard], query: str, database: str, k: int) -> tuple[Floats, Rows]:
        rows, vectors = self._read(chunk, query)
        return self._indexes[database].nearest(unit(vectors), rows, k)

    def within(self, chunk: list[Shard], query: str, database: str, radius: float) -> Pairs:
        rows, vectors = self._read(chunk, query)
        return self._indexes[database].within(unit(vectors), rows, radius, once=query == database)

    def inside(self, chunk: list[Shard], query: str, database: str, radii: Floats) -> NDArray[np.bool_]:
        rows, vectors = self._read(chunk, query)
        index = self._indexes[database]
        own = np.searchsorted(self._distinct[database], index.rows)
        return index.inside(unit(vectors), rows, radii[own])


# The tables.


@dataclass(frozen=True)
class _Cut:
    """A table sorted by ``row``, to be cut into shards."""

    name: str
    schema: pa.Schema
    table: pa.Table
    rows: Rows


def _write(context: StageContext, sets: dict[str, Members], analysis: Analysis) -> None:
    ids = context.read_all("manifest", ["id"]).column("id").to_pylist()
    copies = np.concatenate([members.copies(ids) for members in sets.values()])
    cuts = [
        _cut("neighbors", NEIGHBORS, "left", tables.edges(analysis.edges)),
        _cut("nearest", NEAREST, "row", pa.concat_tables([tables.nearest(v, copies) for v in analysis.views])),
        _cut("groups", GROUPS, "row", pa.concat_tables([tables.groups(v) for v in analysis.views])),
    ]
    for cut in cuts:
        for shard in context.shards:
            low, high = np.searchsorted(cut.rows, [shard.start, shard.stop])
            context.run.write_shard(cut.name, shard, cut.table.slice(low, high - low), cut.schema)


def _cut(name: str, schema: pa.Schema, key: str, table: pa.Table) -> _Cut:
    ordered = table.take(pa.array(np.argsort(table.column(key).to_numpy(), kind="stable")))
    return _Cut(name, schema, ordered, ordered.column(key).to_numpy())
