"""Random access to the vectors of a few rows on Ray, for the diameters of near-duplicate groups.

Reads only the shards of ``embeddings/`` that contain requested rows. Writes nothing.
"""

from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from synthscale.neighbors.copies import vector_hashes
from synthscale.neighbors.distance import Floats, Rows, distances_within, norms
from synthscale.neighbors.embedding_reader import EmbeddingReader
from synthscale.runtime.task_pool import TaskPool
from synthscale.tables.layout import Shard

_ANCHORS = 65536
"""Anchor rows whose vectors are in memory at a time; every task receives all of them."""


class RowLookup:
    """Implements `groups.VectorLookup` on Ray: distances of rows from anchor rows, and hashes of vectors."""

    def __init__(self, known: EmbeddingReader, chunks: list[list[Shard]], pool: TaskPool) -> None:
        self._reader, self._chunks, self._pool = known, chunks, pool
        self._stops = np.array([chunk[-1].stop for chunk in chunks])

    def distances(self, rows: Rows, anchors: Rows) -> Floats:
        """Return the cosine distance of rows[i] and anchors[i]: (n,)."""
        out = np.empty(len(rows))
        unique, anchor = np.unique(anchors, return_inverse=True)
        for start in range(0, len(unique), _ANCHORS):
            part = unique[start : start + _ANCHORS]
            at = np.flatnonzero((anchor >= start) & (anchor < start + len(part)))
            out[at] = self._distances_from(rows[at], anchor[at] - start, part)
        return out

    def draws(self, rows: Rows) -> NDArray[np.uint64]:
        """Return a 64-bit hash of each row's vector, (n,); it depends on the vector alone."""
        task = ray.remote(_hashes).options(num_cpus=1)
        out = np.empty(len(rows), np.uint64)

        def submit(item: tuple[int, NDArray[np.intp]]) -> Any:
            return task.remote(self._reader, self._chunks[item[0]], rows[item[1]])

        for (_, at), hashes in self._pool.run(self._by_chunk(rows), submit, "large groups: shard groups"):
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
        """Return (number of the shard group, indices of its rows)."""
        chunk = np.searchsorted(self._stops, rows, side="right")
        return [(int(i), np.flatnonzero(chunk == i)) for i in np.unique(chunk)]


def _vectors(known: EmbeddingReader, chunk: list[Shard], rows: Rows) -> NDArray[np.floating]:
    shards = [s for s in chunk if np.searchsorted(rows, s.start) < np.searchsorted(rows, s.stop)]
    block = known.block(shards)
    return block.vectors[np.searchsorted(block.row, rows)]


def _hashes(known: EmbeddingReader, chunk: list[Shard], rows: Rows) -> NDArray[np.uint64]:
    ordered, back = np.unique(rows, return_inverse=True)
    return vector_hashes(_vectors(known, chunk, ordered))[back]


def _anchor_distances(
    known: EmbeddingReader,
    chunk: list[Shard],
    rows: Rows,
    anchor: NDArray[np.intp],
    *anchors: NDArray[np.floating],
) -> Floats:
    ordered, back = np.unique(rows, return_inverse=True)
    vectors = _vectors(known, chunk, ordered)
    both = np.concatenate([vectors, *anchors])
    return distances_within(both, norms(both), back, anchor + len(vectors))
