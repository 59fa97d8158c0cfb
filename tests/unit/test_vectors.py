"""Precomputed vectors: ranges that cross files, faults of rows, and the checks that every vector goes through."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale.config import StorageConfig
from synthscale.errors import InputError, StorageError
from synthscale.schemas import Reason
from synthscale.vectors import VectorSource, check_vectors, read_rows

LOCAL = StorageConfig()
VALUES = np.arange(30, dtype=np.float32).reshape(10, 3) + 0.25


@pytest.fixture
def source(tmp_path):
    """Ten vectors of three numbers in files of 4, 0, 5 and 1 rows."""
    files, counts, start = [], [4, 0, 5, 1], 0
    for i, count in enumerate(counts):
        rows = VALUES[start : start + count].tolist()
        path = f"{tmp_path}/{i}.parquet"
        pq.write_table(pa.table({"embedding": pa.array(rows, pa.list_(pa.float32()))}), path)
        files.append(path)
        start += count
    return VectorSource(files, counts, ["embedding"], 3)


def lists(tmp_path, values, dimensions=3):
    path = f"{tmp_path}/v.parquet"
    pq.write_table(pa.table({"embedding": pa.array(values, pa.list_(pa.float64()))}), path)
    return VectorSource([path], [len(values)], ["embedding"], dimensions)


def columns(tmp_path, **values):
    path = f"{tmp_path}/v.parquet"
    pq.write_table(pa.table(values), path)
    n = len(next(iter(values.values())))
    return VectorSource([path], [n], list(values), len(values))


# --- reading ---


@pytest.mark.parametrize("start", range(10))
@pytest.mark.parametrize("count", [1, 2, 6, 10])
def test_any_range_of_rows_is_read_across_files(source, start, count):
    stop = min(start + count, 10)
    vectors, facts = read_rows(source, start, stop, LOCAL)
    np.testing.assert_array_equal(vectors, VALUES[start:stop])
    assert vectors.dtype == np.float32
    assert facts == [{}] * (stop - start)


def test_integers_and_narrow_and_wide_floats_become_float32(tmp_path):
    source = columns(
        tmp_path,
        a=pa.array([1, 2], pa.int64()),
        b=pa.array([0.5, 1.5], pa.float64()),
        c=pa.array(np.array([0.25, 2], np.float16)),
        d=pa.array([3, 255], pa.uint8()),
    )
    vectors, _ = read_rows(source, 0, 2, LOCAL)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[1, 0.5, 0.25, 3], [2, 1.5, 2, 255]])


def test_columns_are_taken_in_the_order_of_the_source(tmp_path):
    source = replace(columns(tmp_path, a=[1.0], b=[2.0], c=[3.0]), columns=["c", "a", "b"])
    np.testing.assert_array_equal(read_rows(source, 0, 1, LOCAL)[0], [[3, 1, 2]])


@pytest.mark.parametrize("odd", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [], None])
def test_a_vector_of_another_length_is_its_rows_fault(tmp_path, odd):
    vectors, facts = read_rows(lists(tmp_path, [[1, 2, 3], odd, [4, 5, 6]]), 0, 3, LOCAL)
    np.testing.assert_array_equal(vectors, [[1, 2, 3], [0, 0, 0], [4, 5, 6]])
    assert [fact.get("reason") for fact in facts] == [None, Reason.WRONG_LENGTH, None]
    assert str(0 if odd is None else len(odd)) in facts[1]["detail"]
    assert "3" in facts[1]["detail"]


def test_a_null_number_is_no_zero(tmp_path):
    vectors, facts = read_rows(lists(tmp_path, [[1, None, 3]]), 0, 1, LOCAL)
    check_vectors(vectors, facts, (0, 3))
    assert facts[0]["reason"] == Reason.NON_FINITE
    (tmp_path / "v.parquet").unlink()
    vectors, facts = read_rows(columns(tmp_path, a=[1, None], b=[1.0, 2.0]), 0, 2, LOCAL)
    check_vectors(vectors, facts, (0, 2))
    assert [fact.get("reason") for fact in facts] == [None, Reason.NON_FINITE]


def test_a_number_beyond_float32_is_a_fault_and_not_a_huge_vector(tmp_path):
    vectors, facts = read_rows(lists(tmp_path, [[1e300, 1, 1], [1e30, 1, 1]]), 0, 2, LOCAL)
    check_vectors(vectors, facts, (0, 3))
    assert [fact.get("reason") for fact in facts] == [Reason.NON_FINITE, None]


def test_a_file_that_changed_its_length_since_the_run_began_is_refused_by_name(source):
    source = replace(source, file_rows=[5, 0, 5, 1])
    with pytest.raises(InputError, match=r"0\.parquet.*4.*5"):
        read_rows(source, 0, 2, LOCAL)


def test_a_file_that_is_gone_is_named(source):
    source.files[2] += ".none"
    with pytest.raises(StorageError, match=r"2\.parquet\.none"):
        read_rows(source, 3, 6, LOCAL)


# --- checking ---


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_get_a_reason(bad):
    vectors = np.ones((3, 4), np.float32)
    vectors[1, 2] = bad
    facts = [{} for _ in range(3)]
    check_vectors(vectors, facts, (0, 4))
    assert [fact.get("reason") for fact in facts] == [None, Reason.NON_FINITE, None]
    assert facts[1]["detail"]


def test_zero_vectors_get_a_reason():
    facts = [{}, {}]
    check_vectors(np.array([[0, 0, 0], [0, 0, 1e-30]], np.float32), facts, (0, 3))
    assert [fact.get("reason") for fact in facts] == [Reason.ZERO_VECTOR, None]


def test_only_the_search_range_must_have_a_direction():
    facts = [{}, {}]
    check_vectors(np.array([[0, 0, 5], [5, 0, 0]], np.float32), facts, (0, 2))
    assert [fact.get("reason") for fact in facts] == [Reason.ZERO_VECTOR, None]


def test_a_nan_outside_the_search_range_is_a_fault_too():
    facts = [{}]
    check_vectors(np.array([[1, 1, np.nan]], np.float32), facts, (0, 2))
    assert facts[0]["reason"] == Reason.NON_FINITE


def test_an_earlier_reason_is_kept():
    facts = [{"reason": "truncated", "detail": "as found"}]
    check_vectors(np.zeros((1, 2), np.float32), facts, (0, 2))
    assert facts == [{"reason": "truncated", "detail": "as found"}]
