"""`Components` against a reference union-find per view, written from the docstring alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.neighbors.components import Components
from tests.examples import examples

Places = NDArray[np.int64]
Pair = tuple[int, int]


class UnionFind:
    """Reference union-find over the rows of one view."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            i = self.parent[i]
        return i

    def merge(self, i: int, j: int) -> bool:
        """Connect two rows; return True if they were in different components."""
        one, other = self.root(i), self.root(j)
        self.parent[max(one, other)] = min(one, other)
        return one != other


class Views:
    """One union-find for the real rows alone (0), one per generator for its view, and one for its own rows alone.

    Views have the generator's number, and its own rows alone the negative one.
    """

    def __init__(self, code: list[int], labels: list[int]) -> None:
        self.code = code
        self.rows = {v: [i for i, c in enumerate(code) if c in (0, v)] for v in range(max(code) + 1)}
        self.rows |= {-v: [i for i, c in enumerate(code) if c == v] for v in range(1, max(code) + 1)}
        self.of = {v: UnionFind(len(code)) for v in self.rows}
        for v, rows in self.rows.items():
            for i in rows:
                for j in rows:
                    if labels[i] == labels[j]:
                        self.of[v].merge(i, j)

    def view(self, pair: Pair) -> int:
        """The smallest graph with both rows."""
        one, other = sorted(self.code[i] for i in pair)
        return -one if one == other else other

    def apart(self, pair: Pair) -> bool:
        own = self.of[self.view(pair)]
        return own.root(pair[0]) != own.root(pair[1])

    def merge(self, pairs: list[Pair]) -> None:
        for pair in pairs:
            for v, rows in self.rows.items():
                if set(pair) <= set(rows):
                    self.of[v].merge(*pair)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[Pair]]]:
    """Set code and label of each row (equal labels imply equal sets), and batches of pairs within a view."""
    n, generators = draw(st.integers(1, 16)), draw(st.integers(0, 3))
    code = draw(st.lists(st.integers(0, generators), min_size=n, max_size=n))
    given_labels = draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    is_labelled = draw(st.booleans())
    # As a hub's pivot: any number, but of rows of one set alone.
    labels = [
        1000 * (c + 1) + 7 * label if is_labelled else 31 * i
        for i, (c, label) in enumerate(zip(code, given_labels, strict=True))
    ]
    pair = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(
        lambda p: code[p[0]] == code[p[1]] or 0 in (code[p[0]], code[p[1]])
    )
    return code, labels, draw(st.lists(st.lists(pair, max_size=12), min_size=1, max_size=4))


def arrays(pairs: list[Pair]) -> tuple[Places, Places]:
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    return a, b


def both(code: list[int], labels: list[int]) -> tuple[Components, Views]:
    return Components(np.array(code, np.int32), np.array(labels, np.int64)), Views(code, labels)


def related(code: list[int]) -> list[Pair]:
    """All ordered pairs of rows that are in a common view."""
    rows = range(len(code))
    return [(i, j) for i in rows for j in rows if code[i] == code[j] or 0 in (code[i], code[j])]


@given(worlds())
@examples(100)
def test_merging_batches_connects_what_a_union_find_connects(
    world: tuple[list[int], list[int], list[list[Pair]]],
) -> None:
    code, labels, batches = world
    components, views = both(code, labels)
    everything = related(code)
    for pairs in [[], *batches]:
        components.merge(*arrays(pairs))
        views.merge(pairs)
        expected = [views.apart(pair) for pair in everything]
        assert components.apart(*arrays(everything)).tolist() == expected


@given(worlds())
@examples(100)
def test_a_spanning_forest_connects_the_same_rows_without_superfluous_edges(
    world: tuple[list[int], list[int], list[list[Pair]]],
) -> None:
    code, labels, batches = world
    components, views = both(code, labels)
    for pairs in batches:
        a, b = arrays(pairs)
        kept = components.forest(a, b)
        assert kept.dtype.kind == "i"
        assert (np.diff(kept) > 0).all()
        chosen = [pairs[i] for i in kept.tolist()]
        # In the smallest graph that it is of, each edge connects what no earlier batch and no other edge does.
        for v, own in views.of.items():
            alone = UnionFind(len(code))
            for i in range(len(code)):
                alone.merge(i, own.root(i))
            assert all(alone.merge(*pair) for pair in chosen if views.view(pair) == v)
        components.merge(a[kept], b[kept])
        views.merge(pairs)
        # Not only these pairs: every view is connected as by all of them.
        everything = related(code)
        expected = [views.apart(pair) for pair in everything]
        assert components.apart(*arrays(everything)).tolist() == expected


@given(worlds(), st.data())
@examples(100)
def test_are_one_requires_connection_in_every_common_graph(
    world: tuple[list[int], list[int], list[list[Pair]]], data: st.DataObject
) -> None:
    code, labels, batches = world
    components, views = both(code, labels)
    for pairs in batches:
        components.merge(*arrays(pairs))
        views.merge(pairs)
    rows = st.lists(st.integers(0, len(code) - 1), max_size=6)
    left, right = data.draw(rows), data.draw(rows)
    expected = True
    for v, known in views.rows.items():
        sides = [[row for row in side if row in known] for side in (left, right)]
        if all(sides):
            expected &= len({views.of[v].root(row) for side in sides for row in side}) == 1
    assert components.are_one(np.array(left, np.int64), np.array(right, np.int64)) == expected
    if expected:
        # What a join leaves out for it: no pair between the sides is still apart.
        pairs = [(i, j) for i, j in related(code) if i in left and j in right]
        assert not components.apart(*arrays(pairs)).any()


@given(worlds())
@examples(100)
def test_a_rank_counts_earlier_pairs_of_the_same_component(
    world: tuple[list[int], list[int], list[list[Pair]]],
) -> None:
    code, labels, batches = world
    components, views = both(code, labels)
    for pairs in batches:
        ends = [tuple((views.view(pair), views.of[views.view(pair)].root(end)) for end in pair) for pair in pairs]
        expected = [
            min(sum(earlier[side] == ends[i][side] for earlier in ends[:i]) for side in (0, 1))
            for i in range(len(pairs))
        ]
        assert components.ranks(*arrays(pairs)).tolist() == expected
        components.merge(*arrays(pairs))
        views.merge(pairs)


REAL_FAKE_OTHER = [0, 0, 0, 1, 1, 2]


def test_an_edge_of_one_generator_does_not_affect_other_views() -> None:
    components, _ = both(REAL_FAKE_OTHER, list(range(6)))
    # Real rows 0 and 1 by way of the first generator's row 3; the second's row 5 is near row 0.
    components.merge(*arrays([(0, 3), (1, 3), (0, 5)]))
    assert components.apart(*arrays([(0, 1), (1, 5), (0, 3), (1, 3), (0, 5)])).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert not components.are_one(np.array([0]), np.array([1]))
    assert components.are_one(np.array([1]), np.array([3]))
    components.merge(*arrays([(1, 0)]))
    assert not components.apart(*arrays([(0, 1), (1, 5)])).any()
    assert components.are_one(np.array([0, 1]), np.array([0, 1, 3, 5]))


def test_rows_without_a_common_view_need_no_comparison() -> None:
    components, _ = both(REAL_FAKE_OTHER, list(range(6)))
    assert components.are_one(np.array([3, 4]), np.array([5]))
    assert components.are_one(np.array([0, 1]), np.array([], np.int64))


def test_rows_with_equal_labels_are_initially_connected() -> None:
    components, _ = both(REAL_FAKE_OTHER, [9, 9, 4, 7, 7, 1])
    assert not components.apart(*arrays([(0, 1), (3, 4)])).any()
    assert components.apart(*arrays([(0, 2), (0, 3), (0, 5)])).all()
    # One edge to any of them connects them all.
    components.merge(*arrays([(1, 4)]))
    assert components.are_one(np.array([0, 1]), np.array([3, 4]))


def test_empty_rows_and_edges_are_accepted() -> None:
    empty = Components(np.empty(0, np.int32), np.empty(0, np.int64))
    none = np.empty(0, np.int64)
    for components in (empty, both(REAL_FAKE_OTHER, list(range(6)))[0]):
        components.merge(none, none)
        assert components.are_one(none, none)
        assert len(components.apart(none, none)) == len(components.ranks(none, none)) == 0
        assert components.forest(none, none).tolist() == []


@pytest.mark.parametrize("n", [2000, 30_000])
def test_a_forest_of_many_edges_is_spanning(n: int) -> None:
    rng = np.random.default_rng(n)
    code = np.repeat(np.arange(3, dtype=np.int32), n // 3 + 1)[:n]
    components = Components(code, np.arange(n))
    a, b = rng.integers(0, n, (2, 5 * n))
    one_view = (code[a] == code[b]) | (code[a] == 0) | (code[b] == 0)
    a, b = a[one_view], b[one_view]
    kept = components.forest(a, b)
    assert len(kept) < 3 * n
    components.merge(a[kept], b[kept])
    assert not components.apart(a, b).any()
    assert len(components.forest(a, b)) == 0
