"""Near-duplicate groups: connected components over rows, and how far apart their members are.

Pure: arrays in, arrays out. The smallest member row names a group.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Edges


class VectorLookup(Protocol):
    """Looks up what a few rows are to each other, wherever their vectors lie."""

    def distances(self, a: Rows, b: Rows) -> NDArray[np.float64]:
        """Return the cosine distance of row a[i] and row b[i]."""
        ...

    def draws(self, rows: Rows) -> NDArray[np.uint64]:
        """Return a number for each row that depends on nothing but its vector."""
        ...


_ALL_PAIRS = 32
"""Groups up to this size get their exact diameter."""
_CHAIN = 4.0
"""In cosine distance; in Euclidean terms ends twice as far apart as near-duplicates may be."""


def component_minimum(nodes: Rows, left: Rows, right: Rows) -> Rows:
    """Return, for each node, the smallest node of its connected component.

    Args:
        nodes: distinct row numbers, ascending, shape (n,).
        left: one end of each edge; every value is a node.
        right: the other end.
    """
    n = len(nodes)
    edges = coo_array(
        (np.ones(len(left), np.int8), (np.searchsorted(nodes, left), np.searchsorted(nodes, right))), shape=(n, n)
    )
    _, labels = connected_components(edges, directed=False)
    smallest = np.full(labels.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, labels, nodes)
    result: Rows = smallest[labels]
    return result


@dataclass(frozen=True)
class Groups:
    """Near-duplicate groups of two or more rows in one generator's view; arrays over member rows, ascending.

    ``diameter`` is the largest cosine distance that is known between members (see ``diameters``); ``is_chain``
    tells that it is more than four times the radius: the ends are no near-duplicates, only linked by ones.
    """

    row: Rows
    near_duplicate_id: Rows
    size: Rows
    has_real: NDArray[np.bool_]
    has_synthetic: NDArray[np.bool_]
    diameter: NDArray[np.float64]
    is_chain: NDArray[np.bool_]


def near_duplicate_groups(edges: Edges, radius: float, lookup: VectorLookup) -> Groups:
    """Return the groups that edges form.

    Args:
        edges: of one view, those of exact copies (distance 0) included.
        radius: below which rows are near-duplicates.
        lookup: of the rows that have edges.
    """
    nodes, codes = edges.ends()
    group = component_minimum(nodes, edges.left, edges.right)
    _, index, size = np.unique(group, return_inverse=True, return_counts=True)
    real = np.bincount(index, weights=codes == 0, minlength=len(size)) > 0
    synthetic = np.bincount(index, weights=codes != 0, minlength=len(size)) > 0
    diameter = diameters(nodes, index, edges, lookup)
    return Groups(
        nodes,
        group,
        size[index].astype(np.int64),
        real[index],
        synthetic[index],
        diameter[index],
        (diameter > _CHAIN * radius)[index],
    )


def diameters(nodes: Rows, index: NDArray[np.intp], edges: Edges, lookup: VectorLookup) -> NDArray[np.float64]:
    """Return the diameter of each of g groups, (g,).

    It is exact for groups of up to 32 rows. For larger ones it is the distance from the member that lies farthest
    from a drawn one to the member farthest from that: never less than 1 / sqrt(3) of the true diameter in
    Euclidean terms. No order of rows changes it.

    Args:
        nodes: member rows of all groups, ascending, (n,).
        index: the group of each, 0..g-1, (n,).
        edges: those that form the groups.
        lookup: of the rows.
    """
    size = np.bincount(index)
    result = np.zeros(len(size))
    of_edge = index[np.searchsorted(nodes, edges.left)]
    np.maximum.at(result, of_edge, edges.distance)
    # A group of copies alone has diameter 0, and one whose pairs are all edges its longest edge.
    unknown = (np.bincount(of_edge, minlength=len(size)) < size * (size - 1) // 2) & (result > 0)
    small, large = unknown & (size <= _ALL_PAIRS), unknown & (size > _ALL_PAIRS)
    a, b = _pairs(index, small)
    if len(a):
        np.maximum.at(result, index[a], lookup.distances(nodes[a], nodes[b]))
    if large.any():
        result[large] = _swept(nodes[large[index]], index[large[index]], lookup)
    return result


def _pairs(index: NDArray[np.intp], chosen: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places of all pairs within the chosen groups."""
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(index))[:-1])
    pairs = [members[group][np.array(np.triu_indices(len(members[group]), 1))] for group in np.flatnonzero(chosen)]
    both = np.concatenate([np.empty((2, 0), np.intp), *pairs], axis=1)
    return both[0], both[1]


def _swept(rows: Rows, group: NDArray[np.intp], lookup: VectorLookup) -> NDArray[np.float64]:
    """Return the diameters of the groups of some rows by two sweeps, in ascending order of group."""
    draws = lookup.draws(rows)
    _, start = _last(group, ~draws, draws)
    which = np.unique(group, return_inverse=True)[1]
    away = np.zeros(0)
    for _ in range(2):
        away = lookup.distances(rows, rows[start][which])
        away, start = _last(group, away, draws)
    return away


def _last(
    group: NDArray[np.intp], key: NDArray[np.generic], draws: NDArray[np.uint64]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return, for each group, the largest key and its place; ties go to the larger draw."""
    order = np.lexsort((draws, key, group))
    ends = np.flatnonzero(np.concatenate([group[order][1:] != group[order][:-1], [True]]))
    return key[order[ends]].astype(np.float64), order[ends]
