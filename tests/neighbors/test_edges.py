import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from synthscale.neighbors.edges import KINDS, Edges, distinct_edges, empty_edges

Line = tuple[int, int, float, int, int]


def from_lines(lines: list[Line]) -> Edges:
    columns = list(zip(*lines, strict=True)) or [(), (), (), (), ()]
    types = (np.int64, np.int64, np.float64, np.int32, np.int32)
    return Edges(*(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))


def lines_of(edges: Edges) -> list[Line]:
    return list(zip(*(column.tolist() for column in vars(edges).values()), strict=True))


# Real rows 0 and 1, row 10 of generator 1, row 20 of generator 2.
MIXED = [(0, 1, 0.1, 0, 0), (0, 10, 0.2, 0, 1), (10, 11, 0.3, 1, 1), (20, 1, 0.4, 2, 0), (20, 21, 0.5, 2, 2)]


def test_kind_is_the_number_of_synthetic_ends() -> None:
    kinds = [KINDS[number] for number in from_lines(MIXED).kind]
    assert kinds == ["real-real", "real-synthetic", "synthetic-synthetic", "real-synthetic", "synthetic-synthetic"]


def test_of_view_selects_real_rows_and_one_generator() -> None:
    edges = from_lines(MIXED)
    assert lines_of(edges.of_view(1)) == [MIXED[0], MIXED[1], MIXED[2]]
    assert lines_of(edges.of_view(2)) == [MIXED[0], MIXED[3], MIXED[4]]
    assert lines_of(edges.of_view(3)) == [MIXED[0]]


def test_ends_returns_each_row_once_with_its_set() -> None:
    rows, codes = from_lines(MIXED).ends()
    assert rows.tolist() == [0, 1, 10, 11, 20, 21]
    assert codes.tolist() == [0, 0, 1, 1, 2, 2]


def test_edges_are_selected_by_mask_or_index() -> None:
    edges = from_lines(MIXED)
    assert len(edges) == 5
    assert lines_of(edges[edges.distance > 0.25]) == MIXED[2:]
    assert lines_of(edges[np.array([4, 0])]) == [MIXED[4], MIXED[0]]


def test_an_empty_edge_list_has_empty_results() -> None:
    none = empty_edges()
    assert (
        len(none) == len(none.kind) == len(none.of_view(1)) == len(none.ends()[0]) == len(distinct_edges([])) == 0
    )
    assert len(distinct_edges([none, none])) == 0
    assert lines_of(distinct_edges([none, from_lines(MIXED[:1])])) == MIXED[:1]


def test_duplicate_edges_are_merged_and_codes_follow_their_ends() -> None:
    found = distinct_edges([from_lines([(20, 1, 0.4, 2, 0), (7, 3, 0.2, 1, 0)]), from_lines([(1, 20, 0.4, 0, 2)])])
    assert lines_of(found) == [(1, 20, 0.4, 0, 2), (3, 7, 0.2, 0, 1)]


def test_duplicate_edges_keep_the_smaller_distance() -> None:
    # A copy by its file may have another vector; its distance is 0.
    found = distinct_edges([from_lines([(3, 5, 1e-7, 0, 0)]), from_lines([(5, 3, 0.0, 0, 0)])])
    assert lines_of(found) == [(3, 5, 0.0, 0, 0)]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] != p[1])), max_size=4)
)
@settings(deadline=None)
def test_distinct_edges_are_unique_and_sorted(parts: list[list[tuple[int, int]]]) -> None:
    made = [from_lines([(i, j, abs(i - j) / 10, i % 3, j % 3) for i, j in part]) for part in parts]
    found = lines_of(distinct_edges(made))
    wanted = sorted({(min(pair), max(pair)) for part in parts for pair in part})
    assert found == [(i, j, (j - i) / 10, i % 3, j % 3) for i, j in wanted]
