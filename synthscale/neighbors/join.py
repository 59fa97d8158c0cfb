"""Radius join: find all pairs of rows within a radius, among rows that a `JoinPlan` has assigned to cells.

Arrays in, arrays out. A join compares rows of one set with each other and real rows with synthetic ones. It
returns exactly the pairs whose distance by distance.py is below the radius (recall 1, precision 1). In hubs, and
once a join has found more than ``EDGES_PER_ROW`` pairs per row, it keeps only a spanning forest of further pairs:
connected components stay exact, and the number of edges stays linear in the number of rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import CandidateFilter, Places, as_database, as_queries, cpu_filter
from synthscale.neighbors.cells import JoinPlan, assign_cells
from synthscale.neighbors.components import Components
from synthscale.neighbors.distance import (
    Rows,
    distances_within,
    divisors,
    normalized,
    paired_distance,
    squared_norms,
)
from synthscale.neighbors.edges import Codes, Edges, distinct_edges, empty_edges
from synthscale.neighbors.projection import Vectors

EDGES_PER_ROW = 64
"""Pairs per row that a join lists before it keeps spanning edges only. Memory and file size grow with it."""
_BLOCK = 2048
"""Rows on either side of one matrix product."""


@dataclass(frozen=True)
class JoinPiece:
    """n rows and their cells, as e entries (one per row and cell) sorted by cell.

    Attributes:
        vectors: (n, d) as stored.
        row: (n,) row numbers.
        code: (n,) set code of each row; 0 is the real set.
        label: (n,) for rows absorbed by a hub the row number of its pivot, else the row itself.
        row_index: (e,) index of the row, 0..n-1.
        cell: (e,) cell number.
        home: (e,) True in the row's home cell, False in cells that it visits.
    """

    vectors: Vectors
    row: Rows
    code: Codes
    label: Rows
    row_index: Places
    cell: NDArray[np.int32]
    home: NDArray[np.bool_]

    def entries(self, cell: int, home: bool) -> Places:
        """Return indices of the rows whose home is the cell, or (``home`` False) of those that visit it."""
        low, high = np.searchsorted(self.cell, [cell, cell + 1])
        entries: Places = self.row_index[low:high][self.home[low:high] == home]
        return entries


@dataclass(frozen=True)
class JoinResult:
    """Result of a join.

    Attributes:
        edges: each pair once, left < right.
        is_whole: True if all pairs are listed, False if only spanning edges of some are.
    """

    edges: Edges
    is_whole: bool


def place_rows(plan: JoinPlan, vectors: Vectors, row: Rows, code: Codes) -> JoinPiece:
    """Assign rows to the cells of a plan.

    Args:
        plan: plan of the join.
        vectors: (n, d) as stored, none zero if ``cosine``.
        row: (n,) row numbers.
        code: (n,) set codes.
    """
    assignment = assign_cells(plan, vectors, code)
    order = np.argsort(assignment.cell, kind="stable")
    label = row.copy()
    absorbed = assignment.hub >= 0
    label[absorbed] = plan.hubs.row[assignment.hub[absorbed]]
    return JoinPiece(
        vectors, row, code, label, assignment.row_index[order], assignment.cell[order], assignment.home[order]
    )


def join(
    plan: JoinPlan, one: JoinPiece, other: JoinPiece | None = None, candidate_filter: CandidateFilter = cpu_filter
) -> JoinResult:
    """Join a piece with itself, or with another piece that has no row in common with it."""
    joiner = _Joiner(plan, [one] if other is None else [one, other], candidate_filter)
    shared = np.unique(one.cell) if other is None else np.intersect1d(one.cell, other.cell)
    for cell in shared.tolist():
        homes, visitors = one.entries(cell, True), one.entries(cell, False)
        is_hub = cell >= len(plan.centers)
        if other is None:
            if not is_hub:
                joiner.compare(homes, homes, is_same=True)
            joiner.compare(visitors, homes, is_dense=is_hub)
        else:
            offset = len(one.row)
            other_homes, other_visitors = other.entries(cell, True) + offset, other.entries(cell, False) + offset
            if not is_hub:
                joiner.compare(homes, other_homes)
            joiner.compare(visitors, other_homes, is_dense=is_hub)
            joiner.compare(other_visitors, homes, is_dense=is_hub)
    return joiner.joined()


def join_all(
    plan: JoinPlan, vectors: Vectors, row: Rows, code: Codes, candidate_filter: CandidateFilter = cpu_filter
) -> JoinResult:
    """Assign rows to cells and join them in memory; the edges include those of hubs. Args as in `place_rows`."""
    piece = place_rows(plan, vectors, row, code)
    joined = join(plan, piece, candidate_filter=candidate_filter)
    stars = hub_edges(plan, piece)
    return JoinResult(distinct_edges([joined.edges, stars]), joined.is_whole and len(stars) == 0)


def hub_edges(plan: JoinPlan, piece: JoinPiece) -> Edges:
    """Return one edge from each absorbed row of a piece to its hub's pivot."""
    absorbed = np.flatnonzero(piece.label != piece.row)
    if len(absorbed) == 0:
        return empty_edges()
    order = np.argsort(plan.hubs.row)
    pivot = order[np.searchsorted(plan.hubs.row, piece.label[absorbed], sorter=order)]
    own = normalized(piece.vectors[absorbed], plan.metric)
    distance = paired_distance(own, np.arange(len(absorbed)), plan.hubs.vectors, pivot)
    code = piece.code[absorbed]
    return Edges(piece.row[absorbed], piece.label[absorbed], distance, code, code)


class _Joiner:
    """Compares blocks of rows and collects pairs: all pairs, or spanning edges once the budget is exceeded."""

    def __init__(self, plan: JoinPlan, pieces: list[JoinPiece], candidate_filter: CandidateFilter) -> None:
        self._pieces, self._candidate_filter, self._radius = pieces, candidate_filter, plan.radius
        alone = len(pieces) == 1
        self._vectors = pieces[0].vectors if alone else np.concatenate([p.vectors for p in pieces])
        self._lengths = divisors(self._vectors, plan.metric)
        points = plan.projection.of_stored(self._vectors, self._lengths)
        magnitude = squared_norms(self._vectors) / self._lengths**2
        self._left = as_queries(points, plan.radius, magnitude)
        self._right = as_database(points, 0.0, magnitude)
        self._row = np.concatenate([p.row for p in pieces])
        self._code = np.concatenate([p.code for p in pieces])
        self._budget = EDGES_PER_ROW * len(self._row)
        self._edges: list[Edges] = []
        self._components: Components | None = None
        self._is_whole = True

    def joined(self) -> JoinResult:
        """Return the edges collected so far."""
        return JoinResult(distinct_edges(self._edges), self._is_whole)

    def compare(self, left: Places, right: Places, *, is_same: bool = False, is_dense: bool = False) -> None:
        """Compare two lists of rows in blocks, and collect the pairs within the radius.

        Args:
            left: indices of rows.
            right: indices of rows.
            is_same: the two lists are the same one; each pair is compared once.
            is_dense: keep spanning edges only, as in hubs.
        """
        for i in range(0, len(left), _BLOCK):
            for j in range(i if is_same else 0, len(right), _BLOCK):
                self._compare_block(left[i : i + _BLOCK], right[j : j + _BLOCK], is_same and i == j, is_dense)

    def _compare_block(self, left: Places, right: Places, is_same: bool, is_dense: bool) -> None:
        if self._components is not None and self._components.are_one(left, right):
            return
        at_left, at_right = self._candidate_filter(self._left[left], self._right[right])
        keep = at_left < at_right if is_same else slice(None)
        a, b = left[at_left[keep]], right[at_right[keep]]
        code_a, code_b = self._code[a], self._code[b]
        related = (code_a == code_b) | (code_a == 0) | (code_b == 0)
        a, b = a[related], b[related]
        if is_dense or self._components is not None or len(a) > self._budget:
            self._keep_spanning(a, b)
        else:
            near = self._within_radius(a, b)
            self._keep(*near)
            self._budget -= len(near[0])

    def _within_radius(self, a: Places, b: Places) -> tuple[Places, Places, NDArray[np.float64]]:
        """Return the candidate pairs whose float64 distance is below the radius, and their distances."""
        distance = distances_within(self._vectors, self._lengths, a, b)
        near = distance < self._radius
        return a[near], b[near], distance[near]

    def _keep(self, a: Places, b: Places, distance: NDArray[np.float64]) -> None:
        self._edges.append(Edges(self._row[a], self._row[b], distance, self._code[a], self._code[b]))

    def _keep_spanning(self, a: Places, b: Places) -> None:
        """Keep a spanning forest of the candidate pairs within the radius, in every view."""
        self._is_whole = False
        components = self._components = self._components or self._current_components()
        max_rank = 1
        while len(a):
            apart = components.apart(a, b)
            a, b = a[apart], b[apart]
            # Each pass tries a few pairs per component; most of the remaining pairs are connected after it.
            now = components.ranks(a, b) < max_rank
            near_a, near_b, distance = self._within_radius(a[now], b[now])
            spanning = components.forest(near_a, near_b)
            self._keep(near_a[spanning], near_b[spanning], distance[spanning])
            components.merge(near_a[spanning], near_b[spanning])
            a, b, max_rank = a[~now], b[~now], max_rank * 2

    def _current_components(self) -> Components:
        """Return the connected components of the hubs and of the pairs found so far."""
        components = Components(self._code, np.concatenate([p.label for p in self._pieces]))
        order = np.argsort(self._row)
        for edges in self._edges:
            ends = [order[np.searchsorted(self._row, rows, sorter=order)] for rows in (edges.left, edges.right)]
            components.merge(ends[0], ends[1])
        return components
