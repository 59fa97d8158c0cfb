"""Which rows a join has connected so far, in every generator's view at once.

A view holds the real rows and one generator's: an edge between real rows connects in all views, any other in its
generator's alone. So what one generator's rows connect says nothing about another's view.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from synthscale.neighbors.candidate_filter import Places
from synthscale.neighbors.edges import Codes


class Components:
    """Components of n rows in the real rows alone (view 0) and in each generator's view."""

    def __init__(self, code: Codes, label: NDArray[np.int64]) -> None:
        """Take each row's set and a label, (n,) each; rows of one label are connected from the start."""
        self._code = code
        views = int(code.max(initial=0)) + 1
        self._of = np.tile(np.unique(label, return_inverse=True)[1], (views, 1))

    def _view(self, a: Places, b: Places) -> Codes:
        return np.maximum(self._code[a], self._code[b])

    def apart(self, a: Places, b: Places) -> NDArray[np.bool_]:
        """Tell which pairs are not connected in the view that an edge between them would be of."""
        view = self._view(a, b)
        different: NDArray[np.bool_] = self._of[view, a] != self._of[view, b]
        return different

    def are_one(self, left: Places, right: Places) -> bool:
        """Tell whether all these rows are connected in every view that they are of."""
        for view, of in enumerate(self._of):
            rows = [own[(self._code[own] == 0) | (self._code[own] == view)] for own in (left, right)]
            if len(rows[0]) and len(rows[1]):
                first = of[rows[0][0]]
                if not all((of[own] == first).all() for own in rows):
                    return False
        return True

    def ranks(self, a: Places, b: Places) -> NDArray[np.int64]:
        """Return how many pairs before it share each pair's left component, or its right one: the fewer."""
        view = self._view(a, b)
        ends = [view * np.int64(self._of.shape[1]) + self._of[view, rows] for rows in (a, b)]
        return np.minimum(_rank(ends[0]), _rank(ends[1]))

    def forest(self, a: Places, b: Places) -> Places:
        """Return the places of edges that suffice to connect what all of these connect."""
        kept = [np.empty(0, np.int64)]
        view, n = self._view(a, b), self._of.shape[1]
        for number in np.unique(view).tolist():
            at = np.flatnonzero(view == number)
            ends = np.sort([self._of[number, a[at]], self._of[number, b[at]]], axis=0)
            _, first = np.unique(ends[0] * n + ends[1], return_index=True)
            first = first[ends[0, first] != ends[1, first]]
            at, ends = at[first], ends[:, first]
            # Weights are places from 1, which tell the edges of the tree apart.
            tree = minimum_spanning_tree(
                coo_array((np.arange(1.0, len(at) + 1), (ends[0], ends[1])), shape=(n, n))
            )
            kept.append(at[tree.data.astype(np.int64) - 1])
        return np.sort(np.concatenate(kept))

    def merge(self, a: Places, b: Places) -> None:
        """Connect the ends of edges."""
        view, n = self._view(a, b), self._of.shape[1]
        for number, of in enumerate(self._of):
            own = (view == 0) | (view == number)
            if own.any():
                edges = coo_array((np.ones(int(own.sum()), np.int8), (of[a[own]], of[b[own]])), shape=(n, n))
                self._of[number] = connected_components(edges, directed=False)[1][of]


def _rank(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many equal values stand before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else order
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - np.repeat(starts, lengths)
    return rank
