"""Near-duplicate groups: connected components of the edges, their groups and clusters, and diameters.

Arrays in, arrays out. The id of a group is its smallest row number.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.components import component_minimum
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Edges
from synthscale.tables.id_hashes import Hashes


class RowAccess(Protocol):
    """Random access to rows, for diameters and clusters: in memory or on Ray."""

    def distances(self, a: Rows, b: Rows) -> NDArray[np.float64]:
        """Return the distance of rows a[i] and b[i]: (n,)."""
        ...

    def id_hashes(self, rows: Rows) -> Hashes:
        """Return the 64-bit hash of each row's id (tables/id_hashes.py): (n,)."""
        ...


_ALL_PAIRS = 32
"""Rows up to which a group's diameter is exact: all pairs are compared, so the cost is quadratic."""
_LEADER_ROUNDS = 64
"""Clusters of a component whose members are looked up, one after another, where not all pairs are listed; the rest
of the component is clustered by its listed pairs. Each takes a pass over the members' vectors."""
_CHAIN = 4.0
"""A group is a chain if its diameter exceeds this multiple of the radius (a factor of 2 in Euclidean terms)."""


@dataclass(frozen=True)
class Groups:
    """Near-duplicates of one generator's view, as arrays over the n rows that have one.

    A **component** is a connected component of the near-duplicate graph. A component with real and synthetic rows
    is split into **groups**: one of its real rows and the synthetic rows in direct contact with a real row, and
    synthetic-only ones of the rest, of a single row too: what synthetic rows connect is one group. So a row that
    resembles a copy and no real image counts as a repeat, not as a copy. Other components are groups. A
    **cluster** is the part of a component within the radius of its leader (`leaders`): rows that are one
    observation in intervals. The ends of a chain are not.

    Attributes:
        row: (n,) row numbers, ascending.
        near_duplicate_id: (n,) id of the row's group: its smallest row number.
        size: (n,) number of rows of the group.
        has_real: (n,) whether the group has a real row.
        has_synthetic: (n,) whether the group has a synthetic row.
        diameter: (n,) largest known distance between members of the group (see `diameters`).
        is_chain: (n,) whether the diameter is more than four times the radius: the ends of the group are not
            near-duplicates of each other, they are only linked through other members.
        near_real: (n,) whether the row is a near-duplicate of another real row.
        component_id: (n,) smallest row number of the row's component.
        component_rows: (n,) number of rows of the row's own class (real or synthetic) in the component.
        cluster_id: (n,) row number of the leader of the row's cluster.
        cluster_rows: (n,) number of rows of the row's own class in the cluster.
    """

    row: Rows
    near_duplicate_id: Rows
    size: Rows
    has_real: NDArray[np.bool_]
    has_synthetic: NDArray[np.bool_]
    diameter: NDArray[np.float64]
    is_chain: NDArray[np.bool_]
    near_real: NDArray[np.bool_]
    component_id: Rows
    component_rows: Rows
    cluster_id: Rows
    cluster_rows: Rows


@dataclass(frozen=True)
class ViewEdges:
    """Near-duplicate pairs of one view.

    Attributes:
        edges: the pairs, including those of exact copies (distance 0).
        radius: distance below which rows are near-duplicates.
        is_whole: whether all pairs of distinct rows are listed; otherwise edges that connect the same rows.
        near_real: distinct synthetic rows that are near-duplicates of a real row, beyond what the edges say;
            needed where not all pairs are listed.
        is_split: whether components of real and synthetic rows are split into groups.
    """

    edges: Edges
    radius: float
    is_whole: bool = True
    near_real: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    is_split: bool = True


def near_duplicate_groups(found: ViewEdges, copies: Copies, lookup: RowAccess) -> Groups:
    """Return the components, groups and clusters of one view.

    Args:
        found: near-duplicate pairs of the view.
        copies: exact copies within each set; a copy has the near-duplicates of its representative.
        lookup: access to the rows that have near-duplicates.
    """
    edges = found.edges
    nodes, codes = edges.ends()
    is_real = codes == 0
    component = component_minimum(nodes, edges.left, edges.right)
    representative = np.searchsorted(nodes, copies.representatives(nodes))
    near_real = _near_real(nodes, is_real, representative, found)
    cluster = leaders(nodes, component, representative, found, lookup)
    group = component
    if found.is_split:
        group = _split(nodes, is_real, component, near_real, edges)
    _, index, size = np.unique(group, return_inverse=True, return_counts=True)
    real = np.bincount(index, weights=is_real, minlength=len(size)) > 0
    synthetic = np.bincount(index, weights=~is_real, minlength=len(size)) > 0
    ends = [index[np.searchsorted(nodes, rows)] for rows in (edges.left, edges.right)]
    diameter = diameters(nodes, index, edges[ends[0] == ends[1]], lookup)
    return Groups(
        nodes,
        group,
        size[index].astype(np.int64),
        real[index],
        synthetic[index],
        diameter[index],
        (diameter > _CHAIN * found.radius)[index],
        near_real,
        component,
        _rows_of_class(component, is_real),
        cluster,
        _rows_of_class(cluster, is_real),
    )


def _rows_of_class(part: Rows, is_real: NDArray[np.bool_]) -> Rows:
    """Return the number of rows of each row's own class in its part: (n,)."""
    _, index, count = np.unique(part * 2 + is_real, return_inverse=True, return_counts=True)
    result: Rows = count[index].astype(np.int64)
    return result


def _near_real(
    nodes: Rows, is_real: NDArray[np.bool_], representative: NDArray[np.intp], found: ViewEdges
) -> NDArray[np.bool_]:
    """Return which rows have another real row within the radius: (n,)."""
    near = np.zeros(len(nodes), np.bool_)
    left, right = (np.searchsorted(nodes, rows) for rows in (found.edges.left, found.edges.right))
    near[left[is_real[right]]] = True
    near[right[is_real[left]]] = True
    near |= np.isin(nodes, found.near_real)
    return near | near[representative]


def _split(
    nodes: Rows, is_real: NDArray[np.bool_], component: Rows, near_real: NDArray[np.bool_], edges: Edges
) -> Rows:
    """Return each row's group after the split of components with real and synthetic rows: (n,) smallest members.

    The rest of a component is grouped by what synthetic rows connect, including those near a real row: these
    connections are known where not all pairs are listed too (`components.Components`).
    """
    has_real = np.isin(component, component[is_real])
    apart = has_real & ~is_real & ~near_real
    own = edges[(edges.left_code > 0) & (edges.right_code > 0)]
    group = component.copy()
    group[apart] = component_minimum(nodes, own.left, own.right)[apart]
    # The smallest row of what is connected may be on the other side of the split.
    _, index = np.unique(np.where(apart, -1 - group, component), return_inverse=True)
    smallest = np.full(index.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, index, nodes)
    result: Rows = smallest[index]
    return result


def leaders(
    nodes: Rows, component: Rows, representative: NDArray[np.intp], found: ViewEdges, lookup: RowAccess
) -> Rows:
    """Return the leader of each row's cluster: (n,) row numbers.

    In each component the rows are visited in the order of their ids' hashes. A row that no leader holds becomes a
    leader, and holds the rows within the radius that no earlier one holds (leader clustering: Hartigan 1975). The
    result does not depend on row numbers.

    Args:
        nodes: (n,) rows, ascending.
        component: (n,) component of each.
        representative: (n,) index of the row that each is an exact copy of.
        found: near-duplicate pairs of the view.
        lookup: access to the rows.
    """
    hashes = lookup.id_hashes(nodes)
    # Exact copies are one node, as old as the copy with the smallest hash, which would be the leader.
    order = np.lexsort((hashes, representative))
    first = order[np.concatenate([[True], representative[order][1:] != representative[order][:-1]])[: len(order)]]
    eldest = np.empty(len(nodes), np.intp)
    eldest[representative[first]] = first
    eldest = eldest[representative]
    rank = np.empty(len(nodes), np.int64)
    rank[np.argsort(hashes, kind="stable")] = np.arange(len(nodes))
    left, right = (eldest[np.searchsorted(nodes, rows)] for rows in (found.edges.left, found.edges.right))
    leader = np.full(len(nodes), -1, np.intp)
    free = eldest == np.arange(len(nodes))
    if not found.is_whole:

        def are_near(a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.bool_]:
            return lookup.distances(nodes[a], nodes[b]) < found.radius

        _lead_by_distance(component, rank, free, leader, are_near)
    _lead_by_edges(left, right, rank, free, leader)
    result: Rows = nodes[leader[eldest]]
    return result


def _lead_by_edges(
    left: NDArray[np.intp],
    right: NDArray[np.intp],
    rank: NDArray[np.int64],
    free: NDArray[np.bool_],
    leader: NDArray[np.intp],
) -> None:
    """Assign leaders to the free nodes by their edges, in place.

    The leaders are the lexicographically first maximal independent set. In each round every free node that is
    older than all its free neighbours leads; a logarithmic number of rounds suffices for random ranks.
    """
    own = (left != right) & free[left] & free[right]
    one, other = np.concatenate([left[own], right[own]]), np.concatenate([right[own], left[own]])
    leads = np.zeros(len(rank), np.bool_)
    ends, waiting = (one, other), free.copy()
    while waiting.any():
        active = waiting[ends[0]] & waiting[ends[1]]
        ends = ends[0][active], ends[1][active]
        oldest = np.full(len(rank), len(rank), np.int64)
        np.minimum.at(oldest, ends[0], rank[ends[1]])
        chosen = waiting & (rank < oldest)
        leads |= chosen
        waiting &= ~chosen
        waiting[ends[1][chosen[ends[0]]]] = False
    # The oldest leader of a node is the last one that is assigned to it.
    held = leads[one] & ~leads[other]
    by, node = one[held], other[held]
    order = np.argsort(-rank[by], kind="stable")
    leader[node[order]] = by[order]
    leader[leads] = np.flatnonzero(leads)


def _lead_by_distance(
    component: Rows,
    rank: NDArray[np.int64],
    free: NDArray[np.bool_],
    leader: NDArray[np.intp],
    are_near: Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[np.bool_]],
) -> None:
    """Assign leaders to free nodes by the distances of a component's members from its oldest one, in place."""
    for _ in range(_LEADER_ROUNDS):
        index = np.flatnonzero(free)
        if not len(index):
            return
        order = index[np.lexsort((rank[index], component[index]))]
        starts = np.concatenate([[True], component[order][1:] != component[order][:-1]])
        oldest = order[starts][np.cumsum(starts) - 1]
        others = order != oldest
        held = np.zeros(len(order), np.bool_)
        held[~others] = True
        held[others] = are_near(order[others], oldest[others])
        leader[order[held]] = oldest[held]
        free[order[held]] = False


def diameters(nodes: Rows, index: NDArray[np.intp], edges: Edges, lookup: RowAccess) -> NDArray[np.float64]:
    """Return the diameter of each of g groups, as a distance: (g,).

    It is exact for groups of up to 32 rows. For larger groups it is estimated by two sweeps: from the member with
    the smallest hash to the member farthest from it, and from there to the farthest member. The last distance
    is at least 1 / sqrt(3) of the true diameter in Euclidean terms. It does not depend on the order of rows.

    Args:
        nodes: (n,) member rows of all groups, ascending.
        index: (n,) group of each member, 0..g-1.
        edges: the edges within groups.
        lookup: access to the vectors of the members.
    """
    size = np.bincount(index)
    result = np.zeros(len(size))
    edge_group = index[np.searchsorted(nodes, edges.left)]
    np.maximum.at(result, edge_group, edges.distance)
    # Groups of exact copies have diameter 0, and in a complete graph the longest edge is the diameter. Copies are
    # connected by edges of their own; what was split off a component need not be.
    parts = np.unique(component_minimum(nodes, edges.left, edges.right), return_index=True)[1]
    is_connected = np.bincount(index[parts], minlength=len(size)) == 1
    is_complete = np.bincount(edge_group, minlength=len(size)) == size * (size - 1) // 2
    is_open = ~is_complete & ((result > 0) | ~is_connected)
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


def _swept_diameters(rows: Rows, group: NDArray[np.intp], lookup: RowAccess) -> NDArray[np.float64]:
    """Return diameters estimated by two sweeps, for the groups of ``rows`` in ascending order of group."""
    hashes = lookup.id_hashes(rows)
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
    """Return the largest key of each group and its index; ties go to the larger hash."""
    order = np.lexsort((hashes, key, group))
    ends = np.flatnonzero(np.concatenate([group[order][1:] != group[order][:-1], [True]]))
    return key[order[ends]].astype(np.float64), order[ends]
