"""Exact copies and near-duplicate groups: connected components over rows.

Pure: arrays in, arrays out. The smallest member row names a group.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Rows = NDArray[np.int64]


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


def vector_keys(vectors: NDArray[np.float32]) -> NDArray[np.bytes_]:
    """Return a key for each vector, (n, d) -> (n,), that equal vectors share; -0 and 0 are equal."""
    plain = vectors + np.float32(0)
    return np.array([hashlib.blake2b(v.tobytes(), digest_size=16).hexdigest() for v in plain], "S32")


def collapse_copies(rows: Rows, *keys: NDArray[np.bytes_]) -> Rows:
    """Return each row's representative: the smallest row that equals it in any key, directly or through others.

    Args:
        rows: distinct row numbers of one set, ascending, shape (n,).
        keys: fixed-width byte strings of shape (n,); an empty string equals nothing.
    """
    left, right = [rows[:0]], [rows[:0]]
    for key in keys:
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        same = (ordered[1:] == ordered[:-1]) & (ordered[1:] != b"")
        left.append(rows[order[:-1][same]])
        right.append(rows[order[1:][same]])
    return component_minimum(rows, np.concatenate(left), np.concatenate(right))


@dataclass(frozen=True)
class Groups:
    """Near-duplicate groups of two or more rows in one generator's view; arrays over their member rows."""

    row: Rows
    near_duplicate_id: Rows
    size: Rows
    has_real: NDArray[np.bool_]
    has_synthetic: NDArray[np.bool_]


def near_duplicate_groups(nodes: Rows, is_real: NDArray[np.bool_], left: Rows, right: Rows) -> Groups:
    """Return the groups that edges form among ``nodes`` (ascending, shape (n,)); singletons are left out."""
    group = component_minimum(nodes, left, right)
    _, index, size = np.unique(group, return_inverse=True, return_counts=True)
    real = np.bincount(index, weights=is_real, minlength=len(size)) > 0
    synthetic = np.bincount(index, weights=~is_real, minlength=len(size)) > 0
    member = size[index] >= 2
    chosen = index[member]
    return Groups(nodes[member], group[member], size[chosen].astype(np.int64), real[chosen], synthetic[chosen])
