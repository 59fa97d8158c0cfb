"""Connected components: of one graph, and of the rows of a join in the views of all generators at once.

The view of a generator consists of the real rows and its own. An edge between two real rows belongs to all views,
any other edge to the view of its generator only, so one generator's rows never connect rows in another's view.
Arrays in, arrays out.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from synthscale.neighbors.candidate_filter import Places
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Codes


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


class Components:
    """Component labels of n rows, in the graph of the real rows alone (view 0) and in each generator's view."""

    def __init__(self, code: Codes, label: NDArray[np.int64]) -> None:
        """Start with one component per label.

        Args:
            code: (n,) set code of each row.
            label: (n,) initial component of each row.
        """
        self._code = code
        views = int(code.max(initial=0)) + 1
        self._component = np.tile(np.unique(label, return_inverse=True)[1], (views, 1))

    def _view(self, a: Places, b: Places) -> Codes:
        """Return the view of each edge: the generator's code, or 0 between real rows."""
        return np.maximum(self._code[a], self._code[b])

    def apart(self, a: Places, b: Places) -> NDArray[np.bool_]:
        """Return, for each pair of rows, True if an edge between them would connect two components of its view."""
        view = self._view(a, b)
        different: NDArray[np.bool_] = self._component[view, a] != self._component[view, b]
        return different

    def are_one(self, left: Places, right: Places) -> bool:
        """Return True if, in every view with rows of both lists, all these rows are one component."""
        for view, component in enumerate(self._component):
            rows = [ends[(self._code[ends] == 0) | (self._code[ends] == view)] for ends in (left, right)]
            if len(rows[0]) and len(rows[1]):
                first = component[rows[0][0]]
                if not all((component[ends] == first).all() for ends in rows):
                    return False
        return True

    def ranks(self, a: Places, b: Places) -> NDArray[np.int64]:
        """Return the number of earlier pairs with the same left or the same right component, whichever is smaller.

        Pairs of low rank, taken together, offer every component a few edges.
        """
        view = self._view(a, b)
        ends = [view * np.int64(self._component.shape[1]) + self._component[view, rows] for rows in (a, b)]
        return np.minimum(_rank(ends[0]), _rank(ends[1]))

    def forest(self, a: Places, b: Places) -> Places:
        """Return indices of a spanning forest of the edges (a, b) over the current components, ascending."""
        kept = [np.empty(0, np.int64)]
        view, n = self._view(a, b), self._component.shape[1]
        for number in np.unique(view).tolist():
            index = np.flatnonzero(view == number)
            ends = np.sort([self._component[number, a[index]], self._component[number, b[index]]], axis=0)
            _, first = np.unique(ends[0] * n + ends[1], return_index=True)
            first = first[ends[0, first] != ends[1, first]]
            index, ends = index[first], ends[:, first]
            # The weights are 1-based edge indices (0 would mean no edge), which identify the edges of the tree.
            tree = minimum_spanning_tree(
                coo_array((np.arange(1.0, len(index) + 1), (ends[0], ends[1])), shape=(n, n))
            )
            kept.append(index[tree.data.astype(np.int64) - 1])
        return np.sort(np.concatenate(kept))

    def merge(self, a: Places, b: Places) -> None:
        """Connect the ends of each edge, a[i] and b[i]."""
        view, n = self._view(a, b), self._component.shape[1]
        for number, component in enumerate(self._component):
            member = (view == 0) | (view == number)
            if member.any():
                edges = coo_array(
                    (np.ones(int(member.sum()), np.int8), (component[a[member]], component[b[member]])),
                    shape=(n, n),
                )
                self._component[number] = connected_components(edges, directed=False)[1][component]


def _rank(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of equal values before each value."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else order
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - np.repeat(starts, lengths)
    return rank
