"""Looks up vectors of a few rows, wherever their shards are: for the diameters of groups."""

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


class RowLookup:
    """Looks up distances of rows from anchors, for the diameters of groups: two passes over the rows' shards."""

    def __init__(self, known: EmbeddingReader, chunks: list[list[Shard]], pool: TaskPool) -> None:
        self._known, self._chunks, self._pool = known, chunks, pool
        self._stops = np.array([chunk[-1].stop for chunk in chunks])

    def distances(self, rows: Rows, anchors: Rows) -> Floats:
        """Return the distance of rows[i] and anchors[i]."""
        out = np.empty(len(rows))
        unique, which = np.unique(anchors, return_inverse=True)
        # A bounded number of anchors at a time; each is one vector.
        for start in range(0, len(unique), _ANCHORS):
            part = unique[start : start + _ANCHORS]
            own = np.flatnonzero((which >= start) & (which < start + len(part)))
            out[own] = self._from(rows[own], which[own] - start, part)
        return out

    def draws(self, rows: Rows) -> NDArray[np.uint64]:
        """Return a number for each row that depends on nothing but its vector."""
        task = ray.remote(_draws).options(num_cpus=1)
        out = np.empty(len(rows), np.uint64)

        def submit(item: tuple[int, NDArray[np.intp]]) -> Any:
            return task.remote(self._known, self._chunks[item[0]], rows[item[1]])

        for (_, own), numbers in self._pool.run(self._by_chunk(rows), submit, "large groups: chunks"):
            out[own] = numbers
        return out

    def _from(self, rows: Rows, which: NDArray[np.intp], anchors: Rows) -> Floats:
        fetch = ray.remote(_vectors).options(num_cpus=1)
        measure = ray.remote(_measure).options(num_cpus=1)
        held = [fetch.remote(self._known, self._chunks[i], anchors[own]) for i, own in self._by_chunk(anchors)]
        out = np.empty(len(rows))

        def submit(item: tuple[int, NDArray[np.intp]]) -> Any:
            chunk, own = item
            return measure.remote(self._known, self._chunks[chunk], rows[own], which[own], *held)

        for (_, own), distance in self._pool.run(self._by_chunk(rows), submit, "diameters of groups: chunks"):
            out[own] = distance
        return out

    def _by_chunk(self, rows: Rows) -> list[tuple[int, NDArray[np.intp]]]:
        chunk = np.searchsorted(self._stops, rows, side="right")
        return [(int(i), np.flatnonzero(chunk == i)) for i in np.unique(chunk)]


def _vectors(known: EmbeddingReader, chunk: list[Shard], rows: Rows) -> NDArray[np.floating]:
    shards = [s for s in chunk if np.searchsorted(rows, s.start) < np.searchsorted(rows, s.stop)]
    block = known.block(shards)
    return block.vectors[np.searchsorted(block.row, rows)]


def _draws(known: EmbeddingReader, chunk: list[Shard], rows: Rows) -> NDArray[np.uint64]:
    ordered, back = np.unique(rows, return_inverse=True)
    return vector_hashes(_vectors(known, chunk, ordered))[back]


def _measure(
    known: EmbeddingReader, chunk: list[Shard], rows: Rows, which: NDArray[np.intp], *anchors: NDArray[np.floating]
) -> Floats:
    ordered, back = np.unique(rows, return_inverse=True)
    own = _vectors(known, chunk, ordered)
    both = np.concatenate([own, *anchors])
    return distances_within(both, norms(both), back, which + len(own))
