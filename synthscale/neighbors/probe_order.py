"""Which queries probe which cells of an index, in the order in which bounds shrink fastest."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import Places

_BANDS = (1, 4, 16)
"""Ranks of cells, by nearness to a query, that are probed together."""


class ProbeOrder:
    """Which queries probe which cells, given their distances to the centres, (m, cells)."""

    def __init__(self, distance: NDArray[np.float32], probes: int) -> None:
        self._distance, self._probes = distance, probes
        self._nearest = distance.argmin(axis=1)

    def nearest(self) -> Iterator[tuple[int, Places]]:
        """Yield (cell, the queries that are nearest to it)."""
        return _by_cell(self._nearest, np.arange(len(self._nearest)))

    def all(self) -> Iterator[tuple[int, Places]]:
        """Yield (cell, queries that probe it), near cells before far ones: bounds that shrink early spare most."""
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


def _by_cell(cell: NDArray[np.integer], who: Places) -> Iterator[tuple[int, Places]]:
    order = np.argsort(cell, kind="stable")
    cells, starts = np.unique(cell[order], return_index=True)
    if len(cells) == 0:
        return
    yield from zip(cells.tolist(), np.split(who[order], starts[1:]), strict=True)
