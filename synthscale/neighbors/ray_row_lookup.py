"""Random access to a few rows on Ray, for the diameters and clusters of near-duplicates.

Reads only the shards of ``embeddings/`` and ``manifest/`` that contain requested rows. Writes nothing.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from synthscale.neighbors.distance import Floats, Rows, distances_within, divisors
from synthscale.neighbors.embedding_reader import EmbeddingReader
from synthscale.runtime.task_pool import TaskPool
from synthscale.tables.id_hashes import Hashes
from synthscale.tables.layout import Shard

_ANCHORS = 65536
"""Anchor rows whose vectors are in memory at a time; every task receives all of them."""


class RowLookup:
    """Implements `groups.RowAccess` on Ray: distances of rows from anchor rows, and hashes of ids."""

    def __init__(self, reader: EmbeddingReader, chunks: list[list[Shard]], pool: TaskPool) -> None:
        """Take the reader of the run, groups of shards in row order (one task each), and the pool of the tasks."""
        self._reader, self._chunks, self._pool = reader, chunks, pool
        self._stops = np.array([chunk[-1].stop for chunk in chunks])

    def distances(self, rows: Rows, anchors: Rows) -> Floats:
        """Return the distance of rows[i] and anchors[i]: (n,)."""
        out = np.empty(len(rows))
        unique, anchor = np.unique(anchors, return_inverse=True)
        for start in range(0, len(unique), _ANCHORS):
            part = unique[start : start + _ANCHORS]
            at = np.flatnonzero((anchor >= start) & (anchor < start + len(part)))
            out[at] = self._distances_from(rows[at], anchor[at] - start, part)
        return out

    def id_hashes(self, rows: Rows) -> Hashes:
        """Return the 64-bit hash of each row's id: (n,)."""
        task = ray.remote(_id_hashes).options(num_cpus=1)
        out = np.empty(len(rows), np.uint64)

        def submit(item: tuple[int, NDArray[np.intp]]) -> Any:
            return task.remote(self._reader, self._chunks[item[0]], rows[item[1]])

        for (_, at), hashes in self._pool.run(self._by_chunk(rows), submit, "ids of grouped rows: shard groups"):
            out[at] = hashes
        return out

    def _distances_from(self, rows: Rows, anchor: NDArray[np.intp], anchors: Rows) -> Floats:
        """Return the distance of rows[i] and anchors[anchor[i]], in two passes: anchors first, then rows."""
        fetch = ray.remote(_vectors).options(num_cpus=1)
        measure = ray.remote(_anchor_distances).options(num_cpus=1)
        anchor_vectors = [
            fetch.remote(self._reader, self._chunks[i], anchors[at]) for i, at in self._by_chunk(anchors)
        ]
        out = np.empty(len(rows))

        def submit(item: tuple[int, NDArray[np.intp]]) -> Any:
            chunk, at = item
            return measure.remote(self._reader, self._chunks[chunk], rows[at], anchor[at], *anchor_vectors)

        for (_, at), distance in self._pool.run(self._by_chunk(rows), submit, "diameters of groups: shard groups"):
            out[at] = distance
        return out

    def _by_chunk(self, rows: Rows) -> list[tuple[int, NDArray[np.intp]]]:
        """Return (number of the shard group, indices into ``rows``) of each group with any of the rows."""
        chunk = np.searchsorted(self._stops, rows, side="right")
        return [(int(i), np.flatnonzero(chunk == i)) for i in np.unique(chunk)]


def _vectors(reader: EmbeddingReader, chunk: list[Shard], rows: Rows) -> NDArray[np.floating]:
    """Return the vectors, (n, d), of distinct rows of a shard group, ascending."""
    shards = [s for s in chunk if np.searchsorted(rows, s.start) < np.searchsorted(rows, s.stop)]
    block = reader.block(shards)
    return block.vectors[np.searchsorted(block.row, rows)]


def _id_hashes(reader: EmbeddingReader, chunk: list[Shard], rows: Rows) -> Hashes:
    """Return the hashes of the ids, (n,), of rows of a shard group."""
    columns = pa.concat_tables(reader.run.read_shard("manifest", shard, ["id_hash"]) for shard in chunk)
    hashes: Hashes = columns.column("id_hash").to_numpy()[rows - chunk[0].start]
    return hashes


def _anchor_distances(
    reader: EmbeddingReader,
    chunk: list[Shard],
    rows: Rows,
    anchor: NDArray[np.intp],
    *anchors: NDArray[np.floating],
) -> Floats:
    """Return the distance of rows[i] and row anchor[i] of all blocks of anchor vectors together: (n,)."""
    ordered, inverse = np.unique(rows, return_inverse=True)
    vectors = _vectors(reader, chunk, ordered)
    both = np.concatenate([vectors, *anchors])
    assert reader.space is not None
    return distances_within(both, divisors(both, reader.space.metric), inverse, anchor + len(vectors))
