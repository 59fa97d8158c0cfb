from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.edges import Edges
from synthscale.groups import Distances, Groups, component_minimum, diameters, near_duplicate_groups
from synthscale.search import Rows
from tests.reference import brute

Vectors = NDArray[np.floating]


def listed(
    pairs: list[tuple[int, int]], distance: list[float] | None = None, synthetic: Rows | None = None
) -> Edges:
    """Edges from pairs of rows; all real but for ``synthetic``."""
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    far = np.zeros(len(pairs)) if distance is None else np.array(distance, np.float64)
    fake = np.empty(0, np.int64) if synthetic is None else synthetic
    return Edges(left, right, far, *(np.isin(end, fake).astype(np.int32) for end in (left, right)))


def no_lookup(left: Rows, right: Rows) -> NDArray[np.float64]:
    raise AssertionError("these diameters are known without a further distance")


def lookup(x: Vectors) -> Distances:
    matrix = brute.cosine_distances(x, x)
    return lambda left, right: matrix[left, right]


def grouped(x: Vectors, radius: float) -> Groups:
    """The groups of the rows of x, all pairs within the radius being edges."""
    pairs = sorted(brute.edges(x, radius))
    distances = brute.cosine_distances(x, x)
    return near_duplicate_groups(listed(pairs, [distances[pair] for pair in pairs]), radius, lookup(x))


def by_group(found: Groups) -> dict[int, list[int]]:
    return {int(i): found.row[found.near_duplicate_id == i].tolist() for i in np.unique(found.near_duplicate_id)}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    n = draw(st.integers(1, 30))
    node = st.integers(0, n - 1)
    return n, draw(st.lists(st.tuples(node, node), max_size=40))


@given(graphs(), st.integers(0, 1000), st.integers(1, 9))
@settings(deadline=None)
def test_every_node_gets_the_smallest_node_that_a_path_reaches(
    graph: tuple[int, list[tuple[int, int]]], offset: int, step: int
) -> None:
    n, pairs = graph
    nodes = np.arange(n) * step + offset
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    found = component_minimum(nodes, nodes[left], nodes[right])
    for members in brute.components(n, set(pairs)):
        assert (found[members] == nodes[members[0]]).all()


def test_a_long_chain_is_one_component() -> None:
    nodes = np.arange(50_000)
    order = np.random.default_rng(0).permutation(len(nodes) - 1)
    assert (component_minimum(nodes, nodes[:-1][order], nodes[1:][order]) == 0).all()


def test_no_nodes_have_no_components() -> None:
    none = np.empty(0, np.int64)
    assert len(component_minimum(none, none, none)) == 0


def test_groups_say_whom_they_hold_and_leave_single_rows_out() -> None:
    # Rows 3 and 11 have no edge; an end may stand left or right.
    found = near_duplicate_groups(listed([(0, 1), (7, 9), (6, 4)], synthetic=np.array([4, 7, 9])), 0.1, no_lookup)
    lines = zip(found.row, found.near_duplicate_id, found.size, found.has_real, found.has_synthetic, strict=True)
    assert list(map(tuple, lines)) == [
        (0, 0, 2, True, False),
        (1, 0, 2, True, False),
        (4, 4, 2, True, True),
        (6, 4, 2, True, True),
        (7, 7, 2, False, True),
        (9, 7, 2, False, True),
    ]


@pytest.mark.parametrize("code", [1, 5])
@pytest.mark.parametrize("with_real", [True, False])
def test_rows_of_any_generator_are_synthetic(code: int, with_real: bool) -> None:
    codes = np.array([0 if with_real else code], np.int32), np.array([code], np.int32)
    found = near_duplicate_groups(Edges(np.array([3]), np.array([8]), np.zeros(1), *codes), 1.0, no_lookup)
    assert found.has_real.tolist() == [with_real] * 2
    assert found.has_synthetic.all()


def test_without_edges_there_are_no_groups() -> None:
    found = near_duplicate_groups(listed([]), 0.1, no_lookup)
    assert all(len(values) == 0 for values in vars(found).values())


@given(graphs(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_groups_are_the_components_of_their_edges(graph: tuple[int, list[tuple[int, int]]], seed: int) -> None:
    n, drawn = graph
    pairs = sorted({(min(pair), max(pair)) for pair in drawn if pair[0] != pair[1]})
    codes = np.random.default_rng(seed).integers(0, 2, n)
    found = near_duplicate_groups(listed(pairs, synthetic=np.flatnonzero(codes)), 0.1, no_lookup)
    wanted = [members for members in brute.components(n, set(pairs)) if len(members) > 1]
    assert by_group(found) == {members[0]: members for members in wanted}
    assert (np.diff(found.row) > 0).all()
    for members in wanted:
        at = np.searchsorted(found.row, members)
        assert (found.size[at] == len(members)).all()
        assert (found.has_real[at] == (codes[members] == 0).any()).all()
        assert (found.has_synthetic[at] == (codes[members] == 1).any()).all()


def test_a_clique_is_as_wide_as_its_longest_edge_and_needs_no_lookup() -> None:
    pairs = [(0, 4), (0, 7), (4, 7), (2, 3)]
    found = near_duplicate_groups(listed(pairs, [0.3, 0.1, 0.2, 0.05]), 0.4, no_lookup)
    assert found.row.tolist() == [0, 2, 3, 4, 7]
    assert found.diameter.tolist() == [0.3, 0.05, 0.05, 0.3, 0.3]
    assert not found.is_chain.any()


def test_copies_alone_have_diameter_zero_and_need_no_lookup() -> None:
    # Copies hang on their representative, so not all pairs are edges.
    found = near_duplicate_groups(listed([(2, i) for i in range(3, 30)]), 5e-324, no_lookup)
    assert (found.size == 28).all()
    assert (found.diameter == 0).all()
    assert not found.is_chain.any()


def test_only_groups_that_are_no_cliques_are_looked_up() -> None:
    asked: set[int] = set()
    x = np.array([[1.0, 0.1 * i] for i in range(12)])
    matrix = brute.cosine_distances(x, x)

    def distances(left: Rows, right: Rows) -> NDArray[np.float64]:
        asked.update(left.tolist(), right.tolist())
        found: NDArray[np.float64] = matrix[left, right]
        return found

    pairs = [(0, 1), (1, 2), (4, 5), (7, 8), (7, 9), (8, 9)]
    found = near_duplicate_groups(listed(pairs, [matrix[pair] for pair in pairs]), 0.1, distances)
    assert asked == {0, 1, 2}
    assert found.diameter[:3].tolist() == [matrix[0, 2]] * 3


@st.composite
def clouds(draw: st.DrawFn) -> tuple[Vectors, float]:
    """Points around a direction, and a radius that links some of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d = draw(st.integers(3, 25)), draw(st.sampled_from([2, 3, 8]))
    x = np.eye(d)[0] + draw(st.sampled_from([0.05, 0.3, 3.0])) * rng.normal(size=(n, d))
    between = np.sort(brute.among(x)[np.triu_indices(n, 1)])
    return x, float(between[int(draw(st.floats(0, 0.6)) * (len(between) - 1))] * (1 + 1e-9))


@given(clouds())
@settings(max_examples=200, deadline=None)
def test_a_diameter_is_at_most_the_true_one_and_at_least_its_third(
    cloud: tuple[Vectors, float],
) -> None:
    x, radius = cloud
    found = grouped(x, radius)
    matrix = brute.cosine_distances(x, x)
    for members in by_group(found).values():
        at = np.searchsorted(found.row, members)
        diameter, true = found.diameter[at[0]], brute.diameter(x, members)
        assert (found.diameter[at] == diameter).all()
        assert diameter <= true
        # In Euclidean terms, which the triangle inequality is about.
        assert np.sqrt(2 * diameter) >= np.sqrt(2 * true) / np.sqrt(3) - 1e-12
        assert (found.is_chain[at] == (diameter > 4 * radius)).all()
        edges = [matrix[i, j] for i in members for j in members if i < j and matrix[i, j] < radius]
        assert diameter >= max(edges)
        if len(members) <= 3 or len(edges) == len(members) * (len(members) - 1) // 2:
            assert diameter == true


@given(seed=st.integers(0, 2**32 - 1), move=st.permutations(range(3)))
@settings(deadline=None)
def test_the_diameter_of_three_members_is_exact_whichever_pair_is_no_edge(seed: int, move: list[int]) -> None:
    x = np.random.default_rng(seed).normal(size=(3, 4))
    matrix = brute.cosine_distances(x, x)
    pairs = [(move[0], move[1]), (move[1], move[2])]
    edges = listed([(min(p), max(p)) for p in pairs], [matrix[pair] for pair in pairs])
    found = diameters(np.arange(3), np.zeros(3, np.intp), edges, lookup(x))
    assert found.tolist() == [matrix.max()]


@given(clouds())
@settings(deadline=None)
def test_spanning_edges_alone_keep_the_bounds(cloud: tuple[Vectors, float]) -> None:
    # A join that finds too many pairs leaves out those that connect nothing new.
    x, radius = cloud
    matrix = brute.cosine_distances(x, x)
    parts: list[set[int]] = [{i} for i in range(len(x))]
    kept = []
    for i, j in sorted(brute.edges(x, radius)):
        one, other = (next(part for part in parts if end in part) for end in (i, j))
        if one is not other:
            parts = [part for part in parts if part not in (one, other)] + [one | other]
            kept.append((i, j))
    found = near_duplicate_groups(listed(kept, [matrix[pair] for pair in kept]), radius, lookup(x))
    for members in by_group(found).values():
        diameter = found.diameter[np.searchsorted(found.row, members[0])]
        true = brute.diameter(x, members)
        assert np.sqrt(true / 3) - 1e-12 <= np.sqrt(diameter) <= np.sqrt(true)


def on_an_arc(angles: list[float]) -> Vectors:
    return np.array([[np.cos(angle), np.sin(angle)] for angle in angles])


def test_a_chain_is_flagged_with_its_diameter_and_a_tight_group_is_not() -> None:
    # Ten steps of 0.1: ends 0.9 apart; and a pair far away. Distances are 1 - cos(angle).
    found = grouped(on_an_arc([0.1 * i for i in range(10)] + [3.0, 3.05]), 0.006)
    assert by_group(found) == {0: list(range(10)), 10: [10, 11]}
    assert found.is_chain.tolist() == [True] * 10 + [False] * 2
    np.testing.assert_allclose(found.diameter[:10], 1 - np.cos(0.9), rtol=1e-12)
    np.testing.assert_allclose(found.diameter[10:], 1 - np.cos(0.05), rtol=1e-9)


def test_a_chain_is_one_whose_ends_are_more_than_two_radii_apart_in_euclidean_terms() -> None:
    for ends, expected in ((1.99, False), (2.01, True)):
        pairs = listed([(0, 1), (1, 2)], [0.01, 0.01])
        far = (ends * np.sqrt(2 * 0.0101)) ** 2 / 2
        table = np.array([[0, 0.01, far], [0.01, 0, 0.01], [far, 0.01, 0]])
        found = near_duplicate_groups(pairs, 0.0101, lambda a, b, t=table: t[a, b])
        assert found.is_chain.tolist() == [expected] * 3


def test_the_order_of_rows_changes_no_diameter() -> None:
    # Four rows: from one start the two farthest are found, from another they are not.
    x = np.array([[10, 1, 0], [10, 0, -2], [10, 2, -2], [10, -1, 0]], np.float64)
    found = [grouped(x[list(order)], 0.0245) for order in permutations(range(4))]
    assert all((groups.size == 4).all() for groups in found)
    assert {float(np.round(groups.diameter[0], 6)) for groups in found} == {0.061675}
