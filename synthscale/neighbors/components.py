"""Connected components: of one graph, and of the rows of a join in the views of all generators at once.

The view of a generator consists of the real rows and its own. An edge between two real rows belongs to all views,
any other edge to the view of its generator only, so one generator's rows never connect rows in another's view.
The rows of one set alone are a graph too: groups of synthetic rows are what they connect without the real rows.
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
    """Component labels of n rows in several graphs.

    With g generators, graph 0 is that of the real rows alone, 1..g are the generators' views, and g+1..2g the
    generators' own rows alone. A new edge is needed if it connects two components of the smallest graph that it
    belongs to: those of the larger ones are then connected too.
    """

    def __init__(self, code: Codes, label: NDArray[np.int64]) -> None:
        """Start with one component per label.

        Args:
            code: (n,) set code of each row.
            label: (n,) initial component of each row.
        """
        self._code = code
        self._generators = int(code.max(initial=0))
        self._component = np.tile(np.unique(label, return_inverse=True)[1], (2 * self._generators + 1, 1))

    def _graph(self, a: Places, b: Places) -> Codes:
        """Return the smallest graph that each edge belongs to."""
        left, right = self._code[a], self._code[b]
        graph = np.maximum(left, right)
        graph[(left == right) & (left > 0)] += self._generators
        return graph

    def _is_in(self, graph: int, rows: Places) -> NDArray[np.bool_]:
        """Return which rows a graph has."""
        code = self._code[rows]
        if graph > self._generators:
            return np.asarray(code == graph - self._generators)
        return np.asarray((code == 0) | (code == graph))

    def apart(self, a: Places, b: Places) -> NDArray[np.bool_]:
        """Return, for each pair of rows, True if an edge between them would connect two components."""
        graph = self._graph(a, b)
        different: NDArray[np.bool_] = self._component[graph, a] != self._component[graph, b]
        return different

    def are_one(self, left: Places, right: Places) -> bool:
        """Return True if, in every graph with rows of both lists, all these rows are one component."""
        for graph, component in enumerate(self._component):
            rows = [ends[self._is_in(graph, ends)] for ends in (left, right)]
            if len(rows[0]) and len(rows[1]):
                first = component[rows[0][0]]
                if not all((component[ends] == first).all() for ends in rows):
                    return False
        return True

    def ranks(self, a: Places, b: Places) -> NDArray[np.int64]:
        """Return the number of earlier pairs with the same left or the same right component, whichever is smaller.

        Pairs of low rank, taken together, offer every component a few edges.
        """
        graph = self._graph(a, b)
        ends = [graph * np.int64(self._component.shape[1]) + self._component[graph, rows] for rows in (a, b)]
        return np.minimum(_rank(ends[0]), _rank(ends[1]))

    def forest(self, a: Places, b: Places) -> Places:
        """Return indices of a spanning forest of the edges (a, b) over the current components, ascending."""
        kept = [np.empty(0, np.int64)]
        graph, n = self._graph(a, b), self._component.shape[1]
        for number in np.unique(graph).tolist():
            index = np.flatnonzero(graph == number)
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
        n = self._component.shape[1]
        for number, component in enumerate(self._component):
            member = self._is_in(number, a) & self._is_in(number, b)
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
