from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthscale.neighbors.copies import (
    ContentKeys,
    Copies,
    content_keys,
    copies_from_pairs,
    equal_pairs,
    vector_keys,
)
from tests.reference import brute

NONE = Copies(np.empty(0, np.int64), np.empty(0, np.int64))


def representatives(n: int, *keys: ContentKeys) -> list[int]:
    """Representatives of rows 0..n-1, where rows with any equal key are copies."""
    rows = np.arange(n)
    return copies_from_pairs(equal_pairs(key, rows) for key in keys).representatives(rows).tolist()


def texts(*values: str, name: str = "set") -> ContentKeys:
    return content_keys((value.encode() for value in values), name)


def test_keys_are_equal_if_strings_and_sets_are() -> None:
    keys = [tuple(key) for key in np.vstack([texts("a", "b", "a", ""), texts("a", "", name="other")]).tolist()]
    assert keys[0] == keys[2]
    assert len(set(keys)) == 5


def test_string_boundaries_change_the_keys() -> None:
    # "a" + "bc" and "ab" + "c", and a name that continues in the string.
    keys = np.vstack([texts("a", "bc"), texts("ab", "c"), texts("ya", name="x"), texts("a", name="xy")])
    assert len({tuple(key) for key in keys.tolist()}) == 6


def test_no_strings_give_no_keys() -> None:
    assert content_keys([], "set").shape == (0, 2)
    assert vector_keys(np.empty((0, 4), np.float32), "set").shape == (0, 2)


@given(
    st.lists(st.lists(st.sampled_from([-0.0, 0.0, 1.0, -1.0]), min_size=2, max_size=2), min_size=1, max_size=20)
)
@settings(deadline=None)
def test_vectors_have_equal_keys_if_and_only_if_they_are_equal(values: list[tuple[float, float]]) -> None:
    keys = vector_keys(np.array(values, np.float32), "set").tolist()
    for x, key in zip(values, keys, strict=True):
        for y, other in zip(values, keys, strict=True):
            # In Python as here, -0 equals 0.
            assert (key == other) == (x == y)


def test_equal_vectors_of_different_sets_have_different_keys() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert not np.isin(vector_keys(x, "a"), vector_keys(x, "b")).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_keys_do_not_depend_on_the_dtype(dtype: type) -> None:
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float16)
    np.testing.assert_array_equal(vector_keys(x.astype(dtype), "a"), vector_keys(x.astype(np.float32), "a"))


def test_keys_do_not_depend_on_the_memory_layout() -> None:
    x = np.random.default_rng(2).normal(size=(6, 8)).astype(np.float32)
    np.testing.assert_array_equal(vector_keys(np.asfortranarray(x), "a"), vector_keys(x, "a"))
    np.testing.assert_array_equal(vector_keys(x[:, ::2], "a"), vector_keys(x[:, ::2].copy(), "a"))


def test_adjacent_float32_values_have_different_keys() -> None:
    x = np.ones((1, 3), np.float32)
    assert not np.isin(vector_keys(np.nextafter(x, np.float32(2)), "a"), vector_keys(x, "a")).any()


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 50), st.integers(1, 7))
@settings(deadline=None)
def test_pairs_connect_all_rows_of_equal_keys_and_no_others(values: list[int], offset: int, step: int) -> None:
    rows = np.arange(len(values)) * step + offset
    left, right = equal_pairs(texts(*map(str, values)), rows)
    pairs = {
        ((a - offset) // step, (b - offset) // step) for a, b in zip(left.tolist(), right.tolist(), strict=True)
    }
    assert all(values[a] == values[b] and a != b for a, b in pairs)
    assert brute.components(len(values), pairs) == sorted(
        [i for i, v in enumerate(values) if v == value] for value in set(values)
    )
    # Linear in the rows, however often one is repeated.
    assert len(left) == len(values) - len(set(values))


def test_rows_may_come_in_any_order() -> None:
    keys = texts("a", "b", "a", "a")
    left, right = equal_pairs(keys, np.array([9, 3, 4, 7]))
    assert sorted(map(sorted, zip(left.tolist(), right.tolist(), strict=True))) == [[4, 7], [7, 9]]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
@settings(deadline=None)
def test_a_representative_is_the_first_row_with_the_same_key(values: list[int]) -> None:
    assert representatives(len(values), texts(*map(str, values))) == [values.index(value) for value in values]


def test_a_representative_is_the_smallest_row_with_any_equal_key() -> None:
    rows = np.array([2, 3, 5, 8, 9])
    by_bytes, by_vector = texts("a", "b", "a", "c", "d"), texts("x", "y", "z", "z", "w")
    one = copies_from_pairs([equal_pairs(by_bytes, rows)])
    assert one.representatives(rows).tolist() == [2, 3, 2, 8, 9]
    # 2 equals 5 in one key and 5 equals 8 in the other: all three are one picture.
    both = copies_from_pairs([equal_pairs(by_bytes, rows), equal_pairs(by_vector, rows)])
    assert both.representatives(rows).tolist() == [2, 3, 2, 2, 9]


def test_rows_without_a_file_are_matched_by_their_vectors() -> None:
    # Vector input has no content hash: its rows are left out of that key, and do not equal each other for it.
    rows, with_file = np.arange(4), np.array([1, 3])
    vectors = np.array([[1, 0], [2, 0], [1, 0], [3, 0]], np.float32)
    found = copies_from_pairs(
        [equal_pairs(vector_keys(vectors, "a"), rows), equal_pairs(texts("same", "same"), with_file)]
    )
    assert found.representatives(rows).tolist() == [0, 1, 0, 1]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25))
@settings(deadline=None)
def test_content_and_vectors_collapse_jointly(values: list[tuple[int, int]]) -> None:
    content, vector = zip(*values, strict=True)
    pairs = {
        (i, j) for j in range(len(values)) for i in range(j) if content[i] == content[j] or vector[i] == vector[j]
    }
    wanted = [0] * len(values)
    for members in brute.components(len(values), pairs):
        for member in members:
            wanted[member] = members[0]
    x = np.array(vector, np.float32)[:, None] + 1
    assert representatives(len(values), texts(*map(str, content)), vector_keys(x, "set")) == wanted


def test_minus_zero_equals_zero_and_is_a_copy() -> None:
    x = np.array([[1, 0.0], [1, -0.0], [-1, 0.0]], np.float32)
    assert representatives(3, vector_keys(x, "real")) == [0, 0, 2]


def test_copies_in_different_sets_are_not_collapsed() -> None:
    x = np.array([[1, 2], [3, 4], [1, 2], [1, 2]], np.float32)
    sets = {"real": np.array([0, 1]), "fake": np.array([2, 3])}
    apart = copies_from_pairs(equal_pairs(vector_keys(x[own], name), own) for name, own in sets.items())
    assert apart.representatives(np.arange(4)).tolist() == [0, 1, 2, 2]
    # Nor when the keys of all sets are compared in one go, as a reducer does.
    keys = np.vstack([vector_keys(x[own], name) for name, own in sets.items()])
    assert copies_from_pairs([equal_pairs(keys, np.arange(4))]).representatives(np.arange(4)).tolist() == [
        0,
        1,
        2,
        2,
    ]


# Rows 2, 5 and 8 are one picture, 3 and 9 another; 0, 4 and 10 are distinct.
SOME = Copies(np.array([2, 3, 5, 8, 9]), np.array([2, 3, 2, 2, 3]))


def test_only_rows_with_copies_are_stored() -> None:
    found = copies_from_pairs([(np.array([8, 2]), np.array([5, 8])), (np.array([3]), np.array([9]))])
    np.testing.assert_array_equal(found.row, SOME.row)
    np.testing.assert_array_equal(found.representative, SOME.representative)
    assert len(copies_from_pairs([]).row) == 0


def test_representatives_of_any_rows_in_any_order() -> None:
    rows = np.array([10, 9, 8, 4, 2, 0, 3, 5, 99])
    assert SOME.representatives(rows).tolist() == [10, 3, 2, 4, 2, 0, 3, 2, 99]
    assert rows.tolist() == [10, 9, 8, 4, 2, 0, 3, 5, 99]


def test_one_row_of_each_group_of_copies_is_distinct() -> None:
    rows = np.arange(11)
    assert rows[SOME.are_distinct(rows)].tolist() == [0, 1, 2, 3, 4, 6, 7, 10]


def test_another_returns_a_different_copy() -> None:
    rows = np.arange(11)
    found = SOME.another(rows)
    assert (found[[0, 1, 4, 6, 7, 10]] == -1).all()
    held = np.array([2, 3, 5, 8, 9])
    assert (found[held] != held).all()
    np.testing.assert_array_equal(SOME.representatives(found[held]), SOME.representatives(held))


def test_counts_include_all_copies_and_are_one_without_copies() -> None:
    assert SOME.counts(np.arange(11)).tolist() == [1, 1, 3, 2, 1, 3, 1, 1, 3, 2, 1]
    assert SOME.counts(np.array([99, 8, 8, 0, -1])).tolist() == [1, 3, 3, 1, 1]
    assert SOME.counts(np.empty(0, np.int64)).tolist() == []
    assert NONE.counts(np.array([4, 0, 7])).tolist() == [1, 1, 1]


def test_each_copy_has_an_edge_of_distance_zero_to_its_representative() -> None:
    edges = SOME.edges(np.array([0, 4, 0, 0, 4], np.int32))
    assert edges.left.tolist() == [2, 2, 3]
    assert edges.right.tolist() == [5, 8, 9]
    assert edges.distance.tolist() == [0, 0, 0]
    assert edges.left_code.tolist() == edges.right_code.tolist() == [0, 0, 4]


def test_the_copy_with_the_smallest_id_is_kept() -> None:
    ids = {2: "c", 5: "a", 8: "b", 3: "x", 9: "y"}
    assert SOME.redundant_rows(ids).tolist() == [2, 8, 9]
    # As text: "10" comes before "9".
    assert SOME.redundant_rows({2: "9", 5: "10", 8: "11", 3: "1", 9: "0"}).tolist() == [2, 3, 8]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_methods_of_copies_are_consistent(values: list[int], random: Random) -> None:
    rows = np.arange(len(values))
    copies = copies_from_pairs([equal_pairs(texts(*map(str, values)), rows)])
    names = [f"id-{i}" for i in range(len(values))]
    random.shuffle(names)
    later = copies.redundant_rows(dict(enumerate(names)))
    kept = np.setdiff1d(rows, later)
    # One of each kind is kept, that of the smallest id, wherever the rows stand.
    assert sorted(values[row] for row in kept) == sorted(set(values))
    for row in kept:
        assert names[row] == min(names[i] for i in rows if values[i] == values[row])
    assert copies.are_distinct(rows).sum() == len(set(values))
    assert copies.counts(rows).tolist() == [values.count(value) for value in values]
    another = copies.another(rows)
    for row in rows:
        assert (another[row] >= 0) == (values.count(values[row]) > 1)
        assert another[row] < 0 or (another[row] != row and values[another[row]] == values[row])
    edges = copies.edges(np.zeros(len(copies.row), np.int32))
    assert len(edges) == len(later)


def test_without_copies_every_row_is_distinct() -> None:
    rows = np.array([4, 0, 7])
    assert NONE.representatives(rows).tolist() == [4, 0, 7]
    assert NONE.are_distinct(rows).all()
    assert NONE.another(rows).tolist() == [-1, -1, -1]
    assert len(NONE.edges(np.empty(0, np.int32))) == len(NONE.redundant_rows({})) == 0
    assert len(SOME.representatives(np.empty(0, np.int64))) == 0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(0, 99))
def test_copies_have_the_smallest_of_their_hashes(kinds: list[int], seed: int) -> None:
    x = np.array(kinds, np.float32)[:, None]
    copies = copies_from_pairs([equal_pairs(vector_keys(x, "set"), np.arange(len(x)))])
    hashes = np.random.default_rng(seed).integers(0, 2**63, len(x)).astype(np.uint64)
    for row, found in enumerate(copies.smallest(hashes)):
        is_first = kinds.index(kinds[row]) == row
        same = [hashes[i] for i, kind in enumerate(kinds) if kind == kinds[row]]
        assert found == (min(same) if is_first else hashes[row])
