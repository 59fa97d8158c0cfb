"""Clusters by leaders and the split of mixed components, beside plain Python over all pairs."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.neighbors.copies import Copies, copies_from_pairs, equal_pairs, vector_keys
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Edges
from synthscale.neighbors.groups import Groups, ViewEdges, near_duplicate_groups
from synthscale.tables.id_hashes import hash_ids
from tests.examples import examples
from tests.reference import brute

Pairs = set[tuple[int, int]]
NONE = Copies(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass
class Access:
    """Look-ups in arrays; the rows that distances were asked of are recorded."""

    x: NDArray[np.floating]
    ids: NDArray[np.uint64]
    asked: set[int] = field(default_factory=set)

    def distances(self, a: Rows, b: Rows) -> NDArray[np.float64]:
        self.asked |= {*a.tolist(), *b.tolist()}
        found: NDArray[np.float64] = np.square(self.x[a] - self.x[b]).sum(axis=1) / 2
        return found

    def id_hashes(self, rows: Rows) -> NDArray[np.uint64]:
        return self.ids[rows]


def access(x: NDArray[np.floating], seed: int = 0) -> Access:
    """Ids in an order that has nothing to do with that of the rows."""
    return Access(x.astype(np.float64), hash_ids(f"{seed}-{i}" for i in range(len(x))))


def edges_of(pairs: Pairs, x: NDArray[np.floating], is_real: NDArray[np.bool_]) -> Edges:
    left, right = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    distance = np.square(x[left].astype(np.float64) - x[right]).sum(axis=1) / 2
    return Edges(left, right, distance, *((~is_real[end]).astype(np.int32) for end in (left, right)))


def copies_of(x: NDArray[np.floating], is_real: NDArray[np.bool_]) -> Copies:
    """Exact copies within each set."""
    rows = [np.flatnonzero(is_real == kind) for kind in (True, False)]
    return copies_from_pairs(equal_pairs(vector_keys(x[own], "set"), own) for own in rows)


def stated(pairs: Pairs, copies: Copies, n: int) -> Pairs:
    """Edges of the distinct rows, and from each copy to its representative, as a join gives them."""
    of = copies.representatives(np.arange(n)).tolist()
    return {(i, j) for i, j in pairs if of[i] == i and of[j] == j} | {(of[i], i) for i in range(n) if of[i] != i}


def spanning(n: int, pairs: Pairs, is_real: NDArray[np.bool_], seed: int) -> Pairs:
    """Some edges with the same components, for all rows and for those of either set, as a join gives them."""
    rng, kept = np.random.default_rng(seed), set()
    for rows in (np.flatnonzero(is_real), np.flatnonzero(~is_real), np.arange(n)):
        part = {int(row): int(row) for row in rows}
        order = sorted(pairs)
        for at in rng.permutation(len(order)).tolist():
            i, j = order[at]
            if i in part and j in part and part[i] != part[j]:
                kept.add((i, j))
                part = {row: part[i] if of == part[j] else of for row, of in part.items()}
    return kept


def crowds(seed: int, n: int, copies: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_], float]:
    """Rows in crowds on a plane, which of them are real, and a radius within which some are."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 2))[rng.integers(0, 5, n)] + 0.3 * rng.normal(size=(n, 2))
    for _ in range(copies):
        x[rng.integers(0, n)] = x[rng.integers(0, n)]
    return x.astype(np.float32), rng.random(n) < 0.4, float(rng.choice([0.001, 0.01, 0.05]))


def leader_of(found: Groups) -> dict[int, int]:
    return dict(zip(found.row.tolist(), found.cluster_id.tolist(), strict=True))


def partition(found: Groups, name: str) -> set[frozenset[int]]:
    by_id: dict[int, set[int]] = {}
    for row, part in zip(found.row.tolist(), getattr(found, name).tolist(), strict=True):
        by_id.setdefault(part, set()).add(row)
    return {frozenset(rows) for rows in by_id.values()}


cases = given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 60), copies=st.sampled_from([0, 10, 40]))


@cases
@examples(75)
def test_leaders_are_found_as_by_visiting_rows_in_the_order_of_their_ids_hashes(
    seed: int, n: int, copies: int
) -> None:
    x, is_real, radius = crowds(seed, n, copies)
    rows, same = access(x, seed), copies_of(x, is_real)
    pairs = brute.edges(x, radius, "euclidean")
    edges = edges_of(stated(pairs, same, n), x, is_real)
    found = near_duplicate_groups(ViewEdges(edges, radius), same, rows)
    order = sorted(found.row.tolist(), key=lambda row: int(rows.ids[row]))
    expected = brute.leaders(order, pairs)
    assert leader_of(found) == expected
    # Members are near their leader, and leaders are not near one another.
    assert all(row == leader or (min(row, leader), max(row, leader)) in pairs for row, leader in expected.items())
    assert not any((i, j) in pairs for i in set(expected.values()) for j in set(expected.values()))
    for name, part in (("cluster_rows", found.cluster_id), ("component_rows", found.component_id)):
        for row, count, number in zip(found.row, getattr(found, name), part, strict=True):
            assert count == (is_real[found.row[part == number]] == is_real[row]).sum()


@cases
@examples(75)
def test_groups_and_leaders_are_the_same_where_only_spanning_edges_are_listed(
    seed: int, n: int, copies: int
) -> None:
    x, is_real, radius = crowds(seed, n, copies)
    rows, same = access(x, seed), copies_of(x, is_real)
    pairs = brute.edges(x, radius, "euclidean")
    listed = stated(pairs, same, n)
    whole = near_duplicate_groups(ViewEdges(edges_of(listed, x, is_real), radius), same, rows)
    few = spanning(n, listed, is_real, seed)
    near = np.array([i for i in range(n) if not is_real[i] and any(is_real[j] for j in near_of(i, pairs))], int)
    edges = edges_of(few, x, is_real)
    found = near_duplicate_groups(ViewEdges(edges, radius, is_whole=False, near_real=near), same, rows)
    assert leader_of(found) == leader_of(whole)
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


def near_of(row: int, pairs: Pairs) -> set[int]:
    return {i + j - row for i, j in pairs if row in (i, j)}


def test_a_large_component_is_clustered_by_few_look_ups_of_distances() -> None:
    # A star of edges around one row, and a second component that is a pair.
    rng = np.random.default_rng(0)
    x = np.vstack([0.01 * rng.normal(size=(2000, 2)), [[5, 5], [5, 5.001]]])
    is_real, rows = np.zeros(2002, np.bool_), access(x)
    edges = edges_of({(0, i) for i in range(1, 2000)} | {(2000, 2001)}, x, is_real)
    found = near_duplicate_groups(ViewEdges(edges, 1.0, is_whole=False), NONE, rows)
    oldest = int(np.argmin(rows.ids[:2000]))
    assert (found.cluster_id[:2000] == oldest).all()
    assert (found.cluster_rows == [2000] * 2000 + [2] * 2).all()
    # By the listed edges alone nearly every row would be on its own.
    by_edges = near_duplicate_groups(ViewEdges(edges, 1.0), NONE, rows)
    assert len(set(by_edges.cluster_id.tolist())) > 1000 or oldest == 0


@cases
@examples(40)
def test_the_order_of_rows_changes_no_cluster_and_no_group(seed: int, n: int, copies: int) -> None:
    x, is_real, radius = crowds(seed, n, copies)
    move = np.random.default_rng(seed + 1).permutation(n)
    rows = access(x, seed)
    moved = Access(rows.x[move], rows.ids[move])
    found = []
    for values, kinds, own in ((x, is_real, rows), (x[move], is_real[move], moved)):
        same = copies_of(values, kinds)
        pairs = stated(brute.edges(values, radius, "euclidean"), same, n)
        found.append(near_duplicate_groups(ViewEdges(edges_of(pairs, values, kinds), radius), same, own))
    before, after = found
    back = {row: int(move[row]) for row in range(n)}
    assert {back[row]: back[leader] for row, leader in leader_of(after).items()} == leader_of(before)
    for name in ("near_duplicate_id", "component_id"):
        moved_back = {frozenset(back[row] for row in part) for part in partition(after, name)}
        assert moved_back == partition(before, name)


# The split of mixed components.


@cases
@examples(75)
def test_groups_are_split_by_direct_contact_with_real_rows(seed: int, n: int, copies: int) -> None:
    x, is_real, radius = crowds(seed, n, copies)
    same, pairs = copies_of(x, is_real), brute.edges(x, radius, "euclidean")
    edges = edges_of(stated(pairs, same, n), x, is_real)
    found = near_duplicate_groups(ViewEdges(edges, radius), same, access(x, seed))
    assert partition(found, "near_duplicate_id") == brute.split(n, pairs, is_real.tolist())
    assert partition(found, "component_id") == {
        frozenset(part) for part in brute.components(n, pairs) if len(part) > 1
    }
    for name in ("near_duplicate_id", "component_id"):
        assert all(min(part) in getattr(found, name) for part in partition(found, name))
    touched = [any(is_real[j] for j in near_of(row, pairs)) for row in found.row.tolist()]
    assert found.near_real.tolist() == touched
    # A synthetic row is in a group with a real one if, and only if, it is near one itself.
    synthetic = ~is_real[found.row]
    np.testing.assert_array_equal(found.has_real[synthetic], found.near_real[synthetic])
    assert found.has_real[~synthetic].all()
    for part in partition(found, "near_duplicate_id"):
        at = np.searchsorted(found.row, sorted(part))
        assert (found.size[at] == len(part)).all()
        assert (found.has_synthetic[at] == (~is_real[sorted(part)]).any()).all()


def chain(length: int, step: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.bool_], Pairs]:
    """A real row 0, and synthetic rows 1, 2, .. at equal steps from it."""
    x = np.column_stack([step * np.arange(length + 1), np.zeros(length + 1)])
    return x, np.arange(length + 1) == 0, {(i, i + 1) for i in range(length)}


def test_of_a_chain_from_a_real_row_only_the_first_row_is_a_copy() -> None:
    x, is_real, pairs = chain(9)
    found = near_duplicate_groups(ViewEdges(edges_of(pairs, x, is_real), 0.6), NONE, access(x))
    assert partition(found, "near_duplicate_id") == {frozenset({0, 1}), frozenset(range(2, 10))}
    assert found.near_duplicate_id.tolist() == [0, 0, *[2] * 8]
    assert found.size.tolist() == [2, 2, *[8] * 8]
    assert found.has_real.tolist() == [True] * 2 + [False] * 8
    assert found.near_real.tolist() == [False, True, *[False] * 8]
    assert (found.component_id == 0).all()
    assert found.component_rows.tolist() == [1, *[9] * 9]
    # The group's own diameter, not the component's: half the square of 7 steps.
    assert found.diameter.tolist() == [0.5, 0.5, *[24.5] * 8]
    assert found.is_chain.tolist() == [False] * 2 + [True] * 8
    # Clusters are bounded: no more than three rows of a chain are within one step of a leader.
    assert max(len(part) for part in partition(found, "cluster_id")) <= 3


def test_a_row_behind_a_copy_is_a_group_of_one_with_its_own_number() -> None:
    # Real row 3 between synthetic rows: 1 and 5 are near it, 0 and 7 only near those.
    x = np.array([[-2.0], [-1.0], [9.0], [0.0], [9.5], [1.0], [30.0], [2.0]])
    is_real = np.arange(8) == 3
    pairs = {(0, 1), (1, 3), (3, 5), (5, 7)}
    found = near_duplicate_groups(ViewEdges(edges_of(pairs, x, is_real), 0.6), NONE, access(x))
    assert found.row.tolist() == [0, 1, 3, 5, 7]
    assert found.near_duplicate_id.tolist() == [0, 1, 1, 1, 7]
    assert found.size.tolist() == [1, 3, 3, 3, 1]
    assert found.component_id.tolist() == [0] * 5
    assert found.component_rows.tolist() == [4, 4, 1, 4, 4]
    assert found.diameter[[0, 4]].tolist() == [0, 0]
    assert not found.is_chain[[0, 4]].any()


def test_what_synthetic_rows_connect_behind_a_copy_is_one_group() -> None:
    # The copies 1 and 2 of the real row 0 are near one another; 3 is behind the one, 4 behind the other.
    x = np.array([[0.0, 0.0], [1.0, 0.4], [1.0, -0.4], [1.0, 1.7], [1.0, -1.7], [50.0, 0.0]])
    pairs = {(0, 1), (0, 2), (1, 2), (1, 3), (2, 4)}
    is_real = np.arange(6) == 0
    found = near_duplicate_groups(ViewEdges(edges_of(pairs, x, is_real), 1.0), NONE, access(x))
    assert partition(found, "near_duplicate_id") == {frozenset({0, 1, 2}), frozenset({3, 4})}
    # No edge is within that group, but it has a diameter, 3.4^2 / 2.
    np.testing.assert_allclose(found.diameter[3:], 5.78)
    assert found.is_chain[3:].all()
    # Where only the real row connects the copies, what is behind them is apart.
    only = near_duplicate_groups(ViewEdges(edges_of(pairs - {(1, 2)}, x, is_real), 1.0), NONE, access(x))
    assert partition(only, "near_duplicate_id") == {frozenset({0, 1, 2}), frozenset({3}), frozenset({4})}


def test_components_of_one_kind_are_not_split_and_datalabs_are_not_either() -> None:
    x, is_real, pairs = chain(9)
    only = near_duplicate_groups(ViewEdges(edges_of(pairs, x, np.zeros(10, np.bool_)), 0.6), NONE, access(x))
    assert partition(only, "near_duplicate_id") == {frozenset(range(10))}
    edges = edges_of(pairs, x, is_real)
    datalab = near_duplicate_groups(ViewEdges(edges, 0.6, is_split=False), NONE, access(x))
    assert partition(datalab, "near_duplicate_id") == {frozenset(range(10))}
    assert datalab.has_real.all()


@pytest.mark.parametrize("first", ["copy", "original"])
def test_an_exact_copy_of_a_row_near_a_real_one_is_near_it_too(first: str) -> None:
    # Only the representative, the smallest row, has the edge to the real row.
    x = np.array([[0.0], [1.0], [1.0], [1.0]]) if first == "original" else np.array([[1.0], [1.0], [1.0], [0.0]])
    is_real = (x == 0)[:, 0]
    same = copies_of(x, is_real)
    pairs = {(0, 1), (1, 2), (1, 3)} if first == "original" else {(0, 1), (0, 2), (0, 3)}
    found = near_duplicate_groups(ViewEdges(edges_of(pairs, x, is_real), 0.6), same, access(x))
    assert found.near_real.tolist() == (~is_real).tolist()
    assert found.has_real.all()
    assert (found.size == 4).all()


def test_components_with_more_clusters_than_are_looked_up_are_clustered_by_their_edges() -> None:
    # A chain's spanning edges are all of its edges, so that the rest is as exact.
    x, _, pairs = chain(500)
    is_real, rows = np.zeros(501, np.bool_), access(x)
    found = near_duplicate_groups(ViewEdges(edges_of(pairs, x, is_real), 0.6, is_whole=False), NONE, rows)
    order = sorted(range(501), key=lambda row: int(rows.ids[row]))
    assert leader_of(found) == brute.leaders(order, pairs)
    assert len(set(found.cluster_id.tolist())) > 64
