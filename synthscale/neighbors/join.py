"""All pairs of rows within a radius, from rows that a JoinPlan has put into cells.

A pair of rows of one set, or of a real and a synthetic row, that is nearer than the radius by the distance formula
is found (recall 1), and no other (precision 1). Where a join finds more than ``EDGES_PER_ROW`` pairs a row, and in
hubs, it keeps only edges that connect what is connected: the groups stay exact and the list stays linear.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import CandidateFilter, Places, as_database, as_queries, cpu_filter
from synthscale.neighbors.cells import JoinPlan, assign_cells
from synthscale.neighbors.components import Components
from synthscale.neighbors.distance import Rows, distances_within, norms, paired_distance, unit
from synthscale.neighbors.edges import Codes, Edges, distinct_edges, empty_edges
from synthscale.neighbors.projection import Vectors

EDGES_PER_ROW = 64
_BLOCK = 2048


@dataclass(frozen=True)
class JoinPiece:
    """Rows and where they stand: n rows, and entries (e) sorted by cell.

    Attributes:
        vectors: (n, d) as stored.
        row: (n,) row numbers.
        code: (n,) each row's set; 0 is the real one.
        label: (n,) the pivot's row of rows that a hub absorbed, else the row itself.
        who, cell, home: (e,) which of the rows, in which cell, whether it lives there.
    """

    vectors: Vectors
    row: Rows
    code: Codes
    label: Rows
    who: Places
    cell: NDArray[np.int32]
    home: NDArray[np.bool_]

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """The lengths of the rows, (n,)."""
        return norms(self.vectors)

    def entries(self, cell: int, home: bool) -> Places:
        """Return which rows live in (or visit) a cell."""
        low, high = np.searchsorted(self.cell, [cell, cell + 1])
        who: Places = self.who[low:high][self.home[low:high] == home]
        return who


@dataclass(frozen=True)
class JoinResult:
    """What a join found: each pair once or twice, left < right; ``is_whole`` unless some were left out."""

    edges: Edges
    is_whole: bool


def place_rows(plan: JoinPlan, vectors: Vectors, row: Rows, code: Codes) -> JoinPiece:
    """Return rows with their entries under a plan."""
    placed = assign_cells(plan, vectors, code)
    order = np.argsort(placed.cell, kind="stable")
    label = row.copy()
    absorbed = placed.hub >= 0
    label[absorbed] = plan.hubs.row[placed.hub[absorbed]]
    return JoinPiece(vectors, row, code, label, placed.who[order], placed.cell[order], placed.home[order])


def join(
    plan: JoinPlan, one: JoinPiece, other: JoinPiece | None = None, shortlist: CandidateFilter = cpu_filter
) -> JoinResult:
    """Return the pairs within a piece, or between two pieces whose rows differ."""
    joiner = _Joiner(plan, [one] if other is None else [one, other], shortlist)
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
    plan: JoinPlan, vectors: Vectors, row: Rows, code: Codes, shortlist: CandidateFilter = cpu_filter
) -> JoinResult:
    """Place rows and join them, in memory."""
    piece = place_rows(plan, vectors, row, code)
    found = join(plan, piece, shortlist=shortlist)
    return JoinResult(distinct_edges([found.edges, hub_edges(plan, piece)]), found.is_whole)


def hub_edges(plan: JoinPlan, piece: JoinPiece) -> Edges:
    """Return one edge from each absorbed row of a piece to its hub's pivot."""
    absorbed = np.flatnonzero(piece.label != piece.row)
    if len(absorbed) == 0:
        return empty_edges()
    order = np.argsort(plan.hubs.row)
    pivot = order[np.searchsorted(plan.hubs.row, piece.label[absorbed], sorter=order)]
    distance = paired_distance(unit(piece.vectors[absorbed]), np.arange(len(absorbed)), plan.hubs.unit, pivot)
    code = piece.code[absorbed]
    return Edges(piece.row[absorbed], piece.label[absorbed], distance, code, code)


class _Joiner:
    """Compares blocks of rows and collects pairs: all of them, or spanning ones once there are too many."""

    def __init__(self, plan: JoinPlan, pieces: list[JoinPiece], shortlist: CandidateFilter) -> None:
        self._pieces, self._shortlist, self._radius = pieces, shortlist, plan.radius
        alone = len(pieces) == 1
        self._vectors = pieces[0].vectors if alone else np.concatenate([p.vectors for p in pieces])
        self._norms = pieces[0].norms if alone else np.concatenate([p.norms for p in pieces])
        points = plan.projection.of_stored(self._vectors, self._norms)
        self._left, self._right = as_queries(points, plan.radius), as_database(points)
        self._row = np.concatenate([p.row for p in pieces])
        self._code = np.concatenate([p.code for p in pieces])
        self._budget = EDGES_PER_ROW * len(self._row)
        self._found: list[Edges] = []
        self._components: Components | None = None
        self._is_whole = True

    def joined(self) -> JoinResult:
        """Return what was found."""
        return JoinResult(distinct_edges(self._found), self._is_whole)

    def compare(self, left: Places, right: Places, *, is_same: bool = False, is_dense: bool = False) -> None:
        """Compare rows with rows, in blocks; ``is_same`` compares each pair of one list once."""
        for i in range(0, len(left), _BLOCK):
            for j in range(i if is_same else 0, len(right), _BLOCK):
                self._block(left[i : i + _BLOCK], right[j : j + _BLOCK], is_same and i == j, is_dense)

    def _block(self, left: Places, right: Places, is_same: bool, is_dense: bool) -> None:
        if self._components is not None and self._components.are_one(left, right):
            return
        at_left, at_right = self._shortlist(self._left[left], self._right[right])
        keep = at_left < at_right if is_same else slice(None)
        a, b = left[at_left[keep]], right[at_right[keep]]
        one, other = self._code[a], self._code[b]
        related = (one == other) | (one == 0) | (other == 0)
        a, b = a[related], b[related]
        if is_dense or self._components is not None or len(a) > self._budget:
            self._span(a, b)
        else:
            near = self._near(a, b)
            self._keep(*near)
            self._budget -= len(near[0])

    def _near(self, a: Places, b: Places) -> tuple[Places, Places, NDArray[np.float64]]:
        """Return the pairs that the formula puts within the radius, and their distances."""
        distance = distances_within(self._vectors, self._norms, a, b)
        near = distance < self._radius
        return a[near], b[near], distance[near]

    def _keep(self, a: Places, b: Places, distance: NDArray[np.float64]) -> None:
        self._found.append(Edges(self._row[a], self._row[b], distance, self._code[a], self._code[b]))

    def _span(self, a: Places, b: Places) -> None:
        """Keep edges that connect what these pairs connect, in every view."""
        self._is_whole = False
        components = self._components = self._components or self._connected()
        tried = 1
        while len(a):
            apart = components.apart(a, b)
            a, b = a[apart], b[apart]
            # A few candidates of each component at a time: most that follow are connected by then.
            now = components.ranks(a, b) < tried
            one, other, distance = self._near(a[now], b[now])
            needed = components.forest(one, other)
            self._keep(one[needed], other[needed], distance[needed])
            components.merge(one[needed], other[needed])
            a, b, tried = a[~now], b[~now], tried * 2

    def _connected(self) -> Components:
        """Return the components that hubs and the pairs found so far make."""
        components = Components(self._code, np.concatenate([p.label for p in self._pieces]))
        order = np.argsort(self._row)
        for edges in self._found:
            ends = [order[np.searchsorted(self._row, rows, sorter=order)] for rows in (edges.left, edges.right)]
            components.merge(ends[0], ends[1])
        return components
