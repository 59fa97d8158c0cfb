"""Order of probing the cells of an IVF index: group queries by cell, near cells first. Arrays in, arrays out."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import Places

_BANDS = (1, 4, 16)
"""Bounds of the bands of cells, ranked by distance from the query, that are probed together."""


class ProbeOrder:
    """Groups m queries by the cells that they probe."""

    def __init__(self, distance: NDArray[np.float32], probes: int) -> None:
        """Take distances of queries from centres, (m, cells), and the number of cells that each query probes.

        Distances may be off by a constant per query.
        """
        self._distance, self._probes = distance, probes
        self._nearest = distance.argmin(axis=1)

    def nearest(self) -> Iterator[tuple[int, Places]]:
        """Yield (cell, indices of the queries whose nearest cell it is)."""
        return _by_cell(self._nearest, np.arange(len(self._nearest)))

    def all(self) -> Iterator[tuple[int, Places]]:
        """Yield (cell, indices of the queries that probe it); every pair of query and probed cell once.

        Near cells come first: the sooner the bound on the k-th distance shrinks, the fewer candidates remain.
        """
        m, cells = self._distance.shape
        near = min(_BANDS[-1], self._probes)
        kth = sorted({near - 1, self._probes - 1})
        order = np.argpartition(self._distance, kth, axis=1)
        first = np.take_along_axis(self._distance, order[:, :near], 1).argsort(axis=1)
        closest = np.take_along_axis(order[:, :near], first, 1)
        for start, stop in zip((0, *_BANDS), _BANDS, strict=False):
            band = closest[:, start:stop]
            yield from _by_cell(band.ravel(), np.repeat(np.arange(m), band.shape[1]))
        if self._probes > near and self._probes < cells:
            far = order[:, near : self._probes]
            yield from _by_cell(far.ravel(), np.repeat(np.arange(m), far.shape[1]))
        elif self._probes > near:
            done = dict(_by_cell(closest.ravel(), np.repeat(np.arange(m), near)))
            for cell in range(cells):
                yield cell, np.delete(np.arange(m), done.get(cell, np.empty(0, np.int64)))


def _by_cell(cell: NDArray[np.integer], query: Places) -> Iterator[tuple[int, Places]]:
    """Group pairs of cell and query by cell."""
    order = np.argsort(cell, kind="stable")
    cells, starts = np.unique(cell[order], return_index=True)
    if len(cells) == 0:
        return
    yield from zip(cells.tolist(), np.split(query[order], starts[1:]), strict=True)
