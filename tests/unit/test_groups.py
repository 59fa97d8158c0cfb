import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthscale.groups import collapse_copies, component_minimum, near_duplicate_groups
from tests.reference import brute


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


def test_copies_take_the_smallest_row_that_equals_them_in_some_key() -> None:
    rows = np.array([2, 3, 5, 8, 9])
    by_bytes = np.array([b"aa", b"bb", b"aa", b"cc", b"dd"])
    by_vector = np.array([b"xx", b"yy", b"zz", b"zz", b"ww"])
    assert collapse_copies(rows, by_bytes).tolist() == [2, 3, 2, 8, 9]
    # 2 equals 5 in one key and 5 equals 8 in the other: all three are one picture.
    assert collapse_copies(rows, by_bytes, by_vector).tolist() == [2, 3, 2, 2, 9]


def test_an_empty_key_equals_nothing() -> None:
    assert collapse_copies(np.arange(3), np.array([b"", b"", b"a"])).tolist() == [0, 1, 2]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
@settings(deadline=None)
def test_a_representative_is_the_first_row_with_the_same_key(keys: list[int]) -> None:
    found = collapse_copies(np.arange(len(keys)), np.array([f"{key}." for key in keys], "S4"))
    assert found.tolist() == [keys.index(key) for key in keys]


def test_groups_say_whom_they_hold_and_leave_single_rows_out() -> None:
    nodes = np.array([0, 1, 4, 6, 7, 9, 11])
    is_real = np.array([True, True, False, True, False, False, True])
    found = near_duplicate_groups(nodes, is_real, np.array([0, 7, 6]), np.array([1, 9, 4]))
    lines = zip(found.row, found.near_duplicate_id, found.size, found.has_real, found.has_synthetic, strict=True)
    assert sorted(map(tuple, lines)) == [
        (0, 0, 2, True, False),
        (1, 0, 2, True, False),
        (4, 4, 2, True, True),
        (6, 4, 2, True, True),
        (7, 7, 2, False, True),
        (9, 7, 2, False, True),
    ]


@pytest.mark.parametrize("n", [0, 3])
def test_without_edges_there_are_no_groups(n: int) -> None:
    none = np.empty(0, np.int64)
    assert len(near_duplicate_groups(np.arange(n), np.ones(n, bool), none, none).row) == 0
