import zlib
from dataclasses import dataclass, field
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Edges
from synthscale.neighbors.groups import (
    Groups,
    RowAccess,
    ViewEdges,
    component_minimum,
    diameters,
    near_duplicate_groups,
)
from tests.examples import examples
from tests.neighbors.views import NONE
from tests.reference import brute

Vectors = NDArray[np.floating]


def listed(
    pairs: list[tuple[int, int]], distance: list[float] | None = None, synthetic: Rows | None = None
) -> Edges:
    """Edges from pairs of rows; all rows are real except ``synthetic``."""
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    far = np.zeros(len(pairs)) if distance is None else np.array(distance, np.float64)
    fake = np.empty(0, np.int64) if synthetic is None else synthetic
    return Edges(left, right, far, *(np.isin(end, fake).astype(np.int32) for end in (left, right)))


class NoLookup:
    """Lookup for groups whose diameters need no further distances."""

    def distances(self, a: Rows, b: Rows) -> NDArray[np.float64]:
        raise AssertionError("these diameters are known without a further distance")

    def id_hashes(self, rows: Rows) -> NDArray[np.uint64]:
        return rows.astype(np.uint64)


@dataclass
class Table:
    """Looks distances and hashes of ids up, and records the requests."""

    matrix: NDArray[np.float64]
    draw: NDArray[np.uint64]
    pairs: list[tuple[int, int]] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)

    def distances(self, a: Rows, b: Rows) -> NDArray[np.float64]:
        assert a.shape == b.shape
        self.pairs += zip(a.tolist(), b.tolist(), strict=True)
        found: NDArray[np.float64] = self.matrix[a, b]
        return found

    def id_hashes(self, rows: Rows) -> NDArray[np.uint64]:
        self.drawn += rows.tolist()
        found: NDArray[np.uint64] = self.draw[rows]
        return found


NO_LOOKUP = NoLookup()


def lookup(x: Vectors) -> Table:
    """Distances by brute force, and row hashes that depend on the vector alone."""
    crc = [zlib.crc32(row.tobytes()) for row in x.astype(np.float64)]
    # All 64 bits matter: a conversion to float64 would lose the lowest.
    return Table(brute.cosine_distances(x, x), np.array(crc, np.uint64) | np.uint64(2**63))


def groups_of(
    edges: Edges, radius: float, access: RowAccess, copies: Copies = NONE, *, is_whole: bool = True
) -> Groups:
    """Components of two sets' edges, their groups and clusters."""
    return near_duplicate_groups(ViewEdges(edges, radius, is_whole), copies, access)


def grouped(x: Vectors, radius: float) -> Groups:
    """Groups of the rows of x, with all pairs within the radius as edges."""
    pairs = sorted(brute.edges(x, radius))
    distances = brute.cosine_distances(x, x)
    return groups_of(listed(pairs, [distances[pair] for pair in pairs]), radius, lookup(x))


def by_group(found: Groups) -> dict[int, list[int]]:
    return {int(i): found.row[found.near_duplicate_id == i].tolist() for i in np.unique(found.near_duplicate_id)}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    n = draw(st.integers(1, 30))
    node = st.integers(0, n - 1)
    return n, draw(st.lists(st.tuples(node, node), max_size=40))


@given(graphs(), st.integers(0, 1000), st.integers(1, 9))
@settings(deadline=None)
def test_component_minimum_is_the_smallest_reachable_node(
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


def test_no_nodes_give_no_components() -> None:
    none = np.empty(0, np.int64)
    assert len(component_minimum(none, none, none)) == 0


def test_groups_list_their_members_and_leave_single_rows_out() -> None:
    # Rows 3 and 11 have no edge; a row may be the left or the right end.
    found = groups_of(listed([(0, 1), (7, 9), (6, 4)], synthetic=np.array([4, 7, 9])), 0.1, NO_LOOKUP)
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
    found = groups_of(Edges(np.array([3]), np.array([8]), np.zeros(1), *codes), 1.0, NO_LOOKUP)
    assert found.has_real.tolist() == [with_real] * 2
    assert found.has_synthetic.all()


def test_no_edges_give_no_groups() -> None:
    found = groups_of(listed([]), 0.1, NO_LOOKUP)
    assert all(len(values) == 0 for values in vars(found).values())


@given(graphs(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_groups_are_the_components_of_their_edges_split_by_contact_with_real_rows(
    graph: tuple[int, list[tuple[int, int]]], seed: int
) -> None:
    n, drawn = graph
    pairs = sorted({(min(pair), max(pair)) for pair in drawn if pair[0] != pair[1]})
    codes = np.random.default_rng(seed).integers(0, 2, n)
    table = Table(np.zeros((n, n)), np.arange(n, dtype=np.uint64))
    found = groups_of(listed(pairs, synthetic=np.flatnonzero(codes)), 0.1, table)
    connected = {row: part[0] for part in brute.components(n, set(pairs)) for row in part}
    assert found.component_id.tolist() == [connected[row] for row in found.row.tolist()]
    wanted = [sorted(members) for members in brute.split(n, set(pairs), (codes == 0).tolist())]
    assert by_group(found) == {members[0]: members for members in wanted}
    assert (np.diff(found.row) > 0).all()
    for members in wanted:
        at = np.searchsorted(found.row, members)
        assert (found.size[at] == len(members)).all()
        assert (found.has_real[at] == (codes[members] == 0).any()).all()
        assert (found.has_synthetic[at] == (codes[members] == 1).any()).all()


def test_the_diameter_of_a_clique_is_its_longest_edge_and_needs_no_lookup() -> None:
    pairs = [(0, 4), (0, 7), (4, 7), (2, 3)]
    found = groups_of(listed(pairs, [0.3, 0.1, 0.2, 0.05]), 0.4, NO_LOOKUP)
    assert found.row.tolist() == [0, 2, 3, 4, 7]
    assert found.diameter.tolist() == [0.3, 0.05, 0.05, 0.3, 0.3]
    assert not found.is_chain.any()


def test_a_group_of_copies_has_diameter_zero_without_lookup() -> None:
    # Copies are linked to their representative only, so not all pairs are edges.
    found = groups_of(listed([(2, i) for i in range(3, 30)]), 5e-324, NO_LOOKUP)
    assert (found.size == 28).all()
    assert (found.diameter == 0).all()
    assert not found.is_chain.any()


def test_distances_are_looked_up_only_for_groups_that_are_not_cliques() -> None:
    table = lookup(np.array([[1.0, 0.1 * i] for i in range(12)]))
    pairs = [(0, 1), (1, 2), (4, 5), (7, 8), (7, 9), (8, 9)]
    found = groups_of(listed(pairs, [table.matrix[pair] for pair in pairs]), 0.1, table)
    assert {row for pair in table.pairs for row in pair} == {0, 1, 2}
    assert found.diameter[:3].tolist() == [table.matrix[0, 2]] * 3


def test_lookups_of_a_large_group_are_linear_in_its_size() -> None:
    # Three groups: a large one, a small one and one of copies only.
    x = np.random.default_rng(0).normal(size=(500, 4))
    x[420:] = x[420]
    chain = [*zip(range(399), range(1, 400), strict=True), *zip(range(400, 409), range(401, 410), strict=True)]
    table = lookup(x)
    far = [*(table.matrix[pair] for pair in chain), *([0.0] * 79)]
    groups_of(listed([*chain, *((420, i) for i in range(421, 500))], far), 0.1, table)
    of_large = [pair for pair in table.pairs if pair[0] < 400]
    assert len(of_large) <= 2 * 400
    assert sorted(pair for pair in table.pairs if pair[0] >= 400) == [
        (i, j) for i in range(400, 410) for j in range(i + 1, 410)
    ]
    assert len(table.drawn) <= 500 + 400


def cloud_of(seed: int, n: int, d: int, spread: float) -> Vectors:
    """Points around a direction."""
    x: Vectors = np.eye(d)[0] + spread * np.random.default_rng(seed).normal(size=(n, d))
    return x


@st.composite
def clouds(draw: st.DrawFn, least: int = 3, most: int = 32) -> tuple[Vectors, float]:
    """Points around a direction, and a radius that links some of them."""
    n, d = draw(st.integers(least, most)), draw(st.sampled_from([2, 3, 8]))
    x = cloud_of(draw(st.integers(0, 2**32 - 1)), n, d, draw(st.sampled_from([0.05, 0.3, 3.0])))
    between = np.sort(brute.among(x)[np.triu_indices(n, 1)])
    return x, float(between[int(draw(st.floats(0, 0.6)) * (len(between) - 1))] * (1 + 1e-9))


def assert_within_bounds(diameter: float, true: float) -> None:
    """At most the true diameter and at least a third of it, which in Euclidean terms is 1 / sqrt(3)."""
    assert diameter <= true
    assert np.sqrt(2 * diameter) >= np.sqrt(2 * true) / np.sqrt(3) - 1e-12


@given(clouds(3, 48))
@examples(75)
def test_diameters_are_exact_up_to_32_members_and_at_least_a_third_beyond(
    cloud: tuple[Vectors, float],
) -> None:
    x, radius = cloud
    found = grouped(x, radius)
    matrix = brute.cosine_distances(x, x)
    for members in by_group(found).values():
        at = np.searchsorted(found.row, members)
        diameter, true = found.diameter[at[0]], brute.diameter(x, members)
        assert (found.diameter[at] == diameter).all()
        assert_within_bounds(diameter, true)
        assert (found.is_chain[at] == (diameter > 4 * radius)).all()
        edges = [matrix[i, j] for i in members for j in members if i < j and matrix[i, j] < radius]
        if len(members) <= 32 or len(edges) == len(members) * (len(members) - 1) // 2:
            assert diameter == true


@pytest.mark.parametrize("n", [2, 3, 31, 32, 33, 34, 200])
@pytest.mark.parametrize("seed", range(4))
def test_32_members_are_compared_in_pairs_and_33_in_two_sweeps(n: int, seed: int) -> None:
    x = cloud_of(seed, n, 5, 0.3)
    table = lookup(x)
    pairs = [(i, i + 1) for i in range(n - 1)]
    edges = listed(pairs, [table.matrix[pair] for pair in pairs])
    (diameter,) = diameters(np.arange(n), np.zeros(n, np.intp), edges, table)
    if n <= 32:
        assert diameter == table.matrix.max()
        return
    start = min(range(n), key=lambda row: int(table.draw[row]))
    away = int(np.argmax(table.matrix[start]))
    assert diameter == table.matrix[away].max()
    assert_within_bounds(diameter, table.matrix.max())


@given(clouds(33, 70), st.integers(0, 2**32 - 1))
@examples(30)
def test_the_bounds_of_large_groups_hold_for_any_starting_member(cloud: tuple[Vectors, float], seed: int) -> None:
    x, _ = cloud
    n = len(x)
    table = lookup(x)
    table.draw = np.random.default_rng(seed).permutation(n).astype(np.uint64) + np.uint64(2**64 - n)
    pairs = [(0, i) for i in range(1, n)]
    edges = listed(pairs, [table.matrix[pair] for pair in pairs])
    (diameter,) = diameters(np.arange(n), np.zeros(n, np.intp), edges, table)
    assert_within_bounds(diameter, table.matrix.max())
    # Hashes that differ only in their lowest bits are distinguished.
    away = int(np.argmax(table.matrix[int(np.argmin(table.draw))]))
    assert diameter == table.matrix[away].max()


def test_the_bound_of_two_sweeps_is_tight_and_a_start_at_an_end_is_exact() -> None:
    # A drawn row, one straight ahead, and two that are as far from both as these from one another; tiny angles.
    side = np.sqrt(3) / 2
    plane = np.array([[0, 0], [1, 0], [0.5, side], [0.5, -side], *([[0.5, 0]] * 36)]) * 1e-4
    plane[0, 0], plane[1, 0] = -1e-9, 1e-4 + 1e-9
    x = np.column_stack([np.ones(len(plane)), plane])
    table = lookup(x)
    pairs = [(0, i) for i in range(1, len(x))]
    edges = listed(pairs, [table.matrix[pair] for pair in pairs])

    def found(first: int) -> float:
        table.draw = np.arange(1, len(x) + 1, dtype=np.uint64)
        table.draw[first] = 0
        return float(diameters(np.arange(len(x)), np.zeros(len(x), np.intp), edges, table)[0])

    true = table.matrix.max()
    assert true == table.matrix[2, 3]
    assert found(0) == pytest.approx(true / 3, rel=1e-4)
    assert_within_bounds(found(0), true)
    assert found(2) == true


def test_small_and_large_groups_together_get_their_own_diameters() -> None:
    rng = np.random.default_rng(3)
    sizes = [40, 2, 7, 33, 32, 60, 3]
    index = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    nodes = np.sort(rng.choice(1000, len(index), replace=False))
    x = rng.normal(size=(1000, 3))
    table = lookup(x)
    pairs = []
    for group in range(len(sizes)):
        members = nodes[index == group].tolist()
        pairs += list(pairwise(members))
    found = diameters(nodes, index, listed(pairs, [table.matrix[pair] for pair in pairs]), table)
    assert len(found) == len(sizes)
    for group, size in enumerate(sizes):
        members = nodes[index == group]
        matrix = table.matrix[np.ix_(members, members)]
        if size <= 32:
            assert found[group] == matrix.max()
        else:
            assert found[group] == matrix[int(np.argmax(matrix[int(np.argmin(table.draw[members]))]))].max()


@given(seed=st.integers(0, 2**32 - 1), move=st.permutations(range(3)))
@settings(deadline=None)
def test_the_diameter_of_three_members_is_exact_whichever_edge_is_missing(seed: int, move: list[int]) -> None:
    x = np.random.default_rng(seed).normal(size=(3, 4))
    matrix = brute.cosine_distances(x, x)
    pairs = [(move[0], move[1]), (move[1], move[2])]
    edges = listed([(min(p), max(p)) for p in pairs], [matrix[pair] for pair in pairs])
    found = diameters(np.arange(3), np.zeros(3, np.intp), edges, lookup(x))
    assert found.tolist() == [matrix.max()]


@given(clouds(3, 48))
@examples(40)
def test_the_bounds_hold_with_spanning_edges_only(cloud: tuple[Vectors, float]) -> None:
    # A join that finds too many pairs keeps only those that connect components.
    x, radius = cloud
    matrix = brute.cosine_distances(x, x)
    parts: list[set[int]] = [{i} for i in range(len(x))]
    kept = []
    for i, j in sorted(brute.edges(x, radius)):
        one, other = (next(part for part in parts if end in part) for end in (i, j))
        if one is not other:
            parts = [part for part in parts if part not in (one, other)] + [one | other]
            kept.append((i, j))
    edges = listed(kept, [matrix[pair] for pair in kept])
    found = groups_of(edges, radius, lookup(x), is_whole=False)
    for members in by_group(found).values():
        diameter = found.diameter[np.searchsorted(found.row, members[0])]
        assert_within_bounds(diameter, brute.diameter(x, members))
        if len(members) <= 32:
            assert diameter == brute.diameter(x, members)


def on_an_arc(angles: list[float]) -> Vectors:
    return np.array([[np.cos(angle), np.sin(angle)] for angle in angles])


def test_a_chain_is_flagged_with_its_diameter_and_a_tight_group_is_not() -> None:
    # Ten members at steps of 0.1 rad (ends 0.9 rad apart) and a distant pair. Distances are 1 - cos(angle).
    found = grouped(on_an_arc([0.1 * i for i in range(10)] + [3.0, 3.05]), 0.006)
    assert by_group(found) == {0: list(range(10)), 10: [10, 11]}
    assert found.is_chain.tolist() == [True] * 10 + [False] * 2
    np.testing.assert_allclose(found.diameter[:10], 1 - np.cos(0.9), rtol=1e-12)
    np.testing.assert_allclose(found.diameter[10:], 1 - np.cos(0.05), rtol=1e-9)


def test_a_chain_is_one_whose_ends_are_more_than_two_radii_apart_in_euclidean_terms() -> None:
    for ends, expected in ((1.99, False), (2.01, True)):
        pairs = listed([(0, 1), (1, 2)], [0.01, 0.01])
        far = (ends * np.sqrt(2 * 0.0101)) ** 2 / 2
        table = Table(np.array([[0, 0.01, far], [0.01, 0, 0.01], [far, 0.01, 0]]), np.arange(3, dtype=np.uint64))
        found = groups_of(pairs, 0.0101, table)
        assert found.is_chain.tolist() == [expected] * 3


def test_diameters_of_small_groups_do_not_depend_on_row_order() -> None:
    # Four rows for which two sweeps find the diameter from one start but not from another.
    x = np.array([[10, 1, 0], [10, 0, -2], [10, 2, -2], [10, -1, 0]], np.float64)
    found = [grouped(x[list(order)], 0.0245) for order in permutations(range(4))]
    assert all((groups.size == 4).all() for groups in found)
    assert {float(groups.diameter[0]) for groups in found} == {brute.diameter(x, [0, 1, 2, 3])}


@given(clouds(20, 60), st.integers(0, 2**32 - 1))
@examples(40)
def test_diameters_of_large_groups_do_not_depend_on_row_order(cloud: tuple[Vectors, float], seed: int) -> None:
    x, radius = cloud
    # Copies have equal hashes; the choice among them must not matter either.
    x = np.vstack([x, x[: len(x) // 3]])
    move = np.random.default_rng(seed).permutation(len(x))
    before, after = grouped(x, radius), grouped(x[move], radius)
    found = {
        frozenset(move[members].tolist()): after.diameter[np.searchsorted(after.row, members[0])]
        for members in by_group(after).values()
    }
    assert found == {
        frozenset(members): before.diameter[np.searchsorted(before.row, members[0])]
        for members in by_group(before).values()
    }


def test_ties_between_far_members_go_by_row_hash_and_not_by_row_number() -> None:
    # A wheel: the sweep starts at the hub, and all rows of the rim are equally far from it.
    rng = np.random.default_rng(8)
    matrix = rng.uniform(0.2, 0.5, (40, 40))
    matrix = np.triu(matrix, 1) + np.triu(matrix, 1).T
    matrix[0, 1:] = matrix[1:, 0] = 0.1
    draw = np.concatenate([[0], 1 + rng.permutation(39)]).astype(np.uint64)
    found = set()
    for _ in range(20):
        move = rng.permutation(40)
        table = Table(matrix[np.ix_(move, move)], draw[move])
        hub = int(np.flatnonzero(move == 0)[0])
        pairs = [(min(hub, i), max(hub, i)) for i in range(40) if i != hub]
        found |= set(diameters(np.arange(40), np.zeros(40, np.intp), listed(pairs, [0.1] * 39), table).tolist())
    assert found == {matrix[int(np.argmax(draw))].max()}
