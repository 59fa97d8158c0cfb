"""Near-duplicate groups: connected components of the edges, and the diameter of each group.

Arrays in, arrays out. The id of a group is its smallest row number.
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
    """Random access to vectors, for the diameters of groups: in memory or on Ray."""

    def distances(self, a: Rows, b: Rows) -> NDArray[np.float64]:
        """Return the cosine distance of rows a[i] and b[i]: (n,)."""
        ...

    def row_hashes(self, rows: Rows) -> NDArray[np.uint64]:
        """Return the 64-bit row hash of each row, (n,); it depends on the row's vector alone."""
        ...


_ALL_PAIRS = 32
"""Rows up to which a group's diameter is exact: all pairs are compared, so the cost is quadratic."""
_CHAIN = 4.0
"""A group is a chain if its diameter exceeds this multiple of the radius (cosine; a factor of 2 if Euclidean)."""


def component_minimum(nodes: Rows, left: Rows, right: Rows) -> Rows:
    """Return, for each node, the smallest node of its connected component.

    Args:
        nodes: (n,) distinct row numbers, ascending.
        left: (e,) one end of each edge; every value is a node.
        right: (e,) the other end.
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
    """Near-duplicate groups of two or more rows in one generator's view, as arrays over the n member rows.

    Attributes:
        row: (n,) row numbers, ascending.
        near_duplicate_id: (n,) id of the row's group: its smallest row number.
        size: (n,) number of rows of the group.
        has_real: (n,) whether the group has a real row.
        has_synthetic: (n,) whether the group has a synthetic row.
        diameter: (n,) largest known cosine distance between members (see `diameters`).
        is_chain: (n,) whether the diameter is more than four times the radius: the ends of the group are not
            near-duplicates of each other, they are only linked through other members.
    """

    row: Rows
    near_duplicate_id: Rows
    size: Rows
    has_real: NDArray[np.bool_]
    has_synthetic: NDArray[np.bool_]
    diameter: NDArray[np.float64]
    is_chain: NDArray[np.bool_]


def near_duplicate_groups(edges: Edges, radius: float, lookup: VectorLookup) -> Groups:
    """Group the rows of one view by connected components.

    Args:
        edges: edges of the view, including those of exact copies (distance 0).
        radius: cosine distance below which rows are near-duplicates.
        lookup: access to the vectors of rows that have edges.
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
    """Return the diameter of each of g groups, as a cosine distance: (g,).

    It is exact for groups of up to 32 rows. For larger groups it is estimated by two sweeps: from the member with
    the smallest row hash to the member farthest from it, and from there to the farthest member. The last distance
    is at least 1 / sqrt(3) of the true diameter in Euclidean terms. It does not depend on the order of rows.

    Args:
        nodes: (n,) member rows of all groups, ascending.
        index: (n,) group of each member, 0..g-1.
        edges: the edges that form the groups.
        lookup: access to the vectors of the members.
    """
    size = np.bincount(index)
    result = np.zeros(len(size))
    edge_group = index[np.searchsorted(nodes, edges.left)]
    np.maximum.at(result, edge_group, edges.distance)
    # Groups of exact copies have diameter 0, and in a complete graph the longest edge is the diameter.
    is_open = (np.bincount(edge_group, minlength=len(size)) < size * (size - 1) // 2) & (result > 0)
    small, large = is_open & (size <= _ALL_PAIRS), is_open & (size > _ALL_PAIRS)
    a, b = _pairs(index, small)
    if len(a):
        np.maximum.at(result, index[a], lookup.distances(nodes[a], nodes[b]))
    if large.any():
        result[large] = _swept_diameters(nodes[large[index]], index[large[index]], lookup)
    return result


def _pairs(index: NDArray[np.intp], chosen: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return all pairs of members of the chosen groups, as indices into the member rows: (p,) each."""
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(index))[:-1])
    pairs = [members[group][np.array(np.triu_indices(len(members[group]), 1))] for group in np.flatnonzero(chosen)]
    both = np.concatenate([np.empty((2, 0), np.intp), *pairs], axis=1)
    return both[0], both[1]


def _swept_diameters(rows: Rows, group: NDArray[np.intp], lookup: VectorLookup) -> NDArray[np.float64]:
    """Return diameters estimated by two sweeps, for the groups of ``rows`` in ascending order of group."""
    hashes = lookup.row_hashes(rows)
    _, start = _largest_by_group(group, ~hashes, hashes)
    position = np.unique(group, return_inverse=True)[1]
    distance = np.zeros(0)
    for _ in range(2):
        distance = lookup.distances(rows, rows[start][position])
        distance, start = _largest_by_group(group, distance, hashes)
    return distance


def _largest_by_group(
    group: NDArray[np.intp], key: NDArray[np.generic], hashes: NDArray[np.uint64]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the largest key of each group and its index; ties go to the larger row hash."""
    order = np.lexsort((hashes, key, group))
    ends = np.flatnonzero(np.concatenate([group[order][1:] != group[order][:-1], [True]]))
    return key[order[ends]].astype(np.float64), order[ends]
