"""Near-duplicate groups: connected components over rows, and how far apart their members are.

Pure: arrays in, arrays out. The smallest member row names a group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from synthscale.edges import Edges
from synthscale.search import Rows

Distances = Callable[[Rows, Rows], NDArray[np.float64]]
"""Gives the cosine distance of row a[i] and row b[i]."""

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


def near_duplicate_groups(edges: Edges, radius: float, distances: Distances) -> Groups:
    """Return the groups that edges form.

    Args:
        edges: of one view, those of exact copies (distance 0) included.
        radius: below which rows are near-duplicates.
        distances: looks up distances of further pairs.
    """
    nodes, codes = edges.ends()
    group = component_minimum(nodes, edges.left, edges.right)
    _, index, size = np.unique(group, return_inverse=True, return_counts=True)
    real = np.bincount(index, weights=codes == 0, minlength=len(size)) > 0
    synthetic = np.bincount(index, weights=codes != 0, minlength=len(size)) > 0
    diameter = diameters(nodes, index, edges, distances)
    return Groups(
        nodes,
        group,
        size[index].astype(np.int64),
        real[index],
        synthetic[index],
        diameter[index],
        (diameter > _CHAIN * radius)[index],
    )


def diameters(nodes: Rows, index: NDArray[np.intp], edges: Edges, distances: Distances) -> NDArray[np.float64]:
    """Return the diameter of each of g groups, (g,).

    It is the longest edge, or, where not all pairs are edges, the distance from the member that lies farthest from
    the smallest row to the one that lies farthest from that: exact for three members, and never less than
    1 / sqrt(3) of the true one in Euclidean terms.

    Args:
        nodes: member rows of all groups, ascending, (n,).
        index: the group of each, 0..g-1, (n,).
        edges: those that form the groups.
        distances: looks up distances of further pairs.
    """
    size = np.bincount(index)
    longest = np.zeros(len(size))
    of_edge = index[np.searchsorted(nodes, edges.left)]
    np.maximum.at(longest, of_edge, edges.distance)
    # A group of copies alone has diameter 0, and one whose pairs are all edges its longest edge.
    unknown = (np.bincount(of_edge, minlength=len(size)) < size * (size - 1) // 2) & (longest > 0)
    rows, own = nodes[unknown[index]], index[unknown[index]]
    if len(rows) == 0:
        return longest
    anchor = np.zeros(len(size), np.int64)
    anchor[own[::-1]] = rows[::-1]
    for _ in range(2):
        away = distances(rows, anchor[own])
        order = np.lexsort((rows, -away, own))
        farthest = order[np.concatenate([[True], own[order][1:] != own[order][:-1]])]
        anchor[own[farthest]] = rows[farthest]
        longest[own[farthest]] = np.maximum(longest[own[farthest]], away[farthest])
    return longest
