"""Precomputed vectors: ranges that cross files, failures of rows, and the checks of all vectors."""

import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale.config import Config, StorageConfig
from synthscale.errors import InputError, StorageError, StorageUnavailable
from synthscale.ingest.table_reader import open_table
from synthscale.ingest.vector_reader import check_vectors, read_vectors
from synthscale.ingest.vector_tables import from_vectors
from synthscale.tables.faults import Reason
from synthscale.tables.layout import VectorSource

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
    vectors, facts = read_vectors(source, start, stop, LOCAL)
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
    vectors, _ = read_vectors(source, 0, 2, LOCAL)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, [[1, 0.5, 0.25, 3], [2, 1.5, 2, 255]])


def test_columns_are_taken_in_the_order_of_the_source(tmp_path):
    source = replace(columns(tmp_path, a=[1.0], b=[2.0], c=[3.0]), columns=["c", "a", "b"])
    np.testing.assert_array_equal(read_vectors(source, 0, 1, LOCAL)[0], [[3, 1, 2]])


@pytest.mark.parametrize("odd", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [], None])
def test_a_vector_of_a_different_length_is_a_failure_of_its_row(tmp_path, odd):
    vectors, facts = read_vectors(lists(tmp_path, [[1, 2, 3], odd, [4, 5, 6]]), 0, 3, LOCAL)
    np.testing.assert_array_equal(vectors, [[1, 2, 3], [0, 0, 0], [4, 5, 6]])
    assert [fact.get("reason") for fact in facts] == [None, Reason.WRONG_LENGTH, None]
    assert str(0 if odd is None else len(odd)) in facts[1]["detail"]
    assert "3" in facts[1]["detail"]


def test_a_null_value_is_not_read_as_zero(tmp_path):
    vectors, facts = read_vectors(lists(tmp_path, [[1, None, 3]]), 0, 1, LOCAL)
    check_vectors(vectors, facts, (0, 3))
    assert facts[0]["reason"] == Reason.NON_FINITE
    (tmp_path / "v.parquet").unlink()
    vectors, facts = read_vectors(columns(tmp_path, a=[1, None], b=[1.0, 2.0]), 0, 2, LOCAL)
    check_vectors(vectors, facts, (0, 2))
    assert [fact.get("reason") for fact in facts] == [None, Reason.NON_FINITE]


def test_a_value_beyond_float32_is_a_failure_of_its_row(tmp_path):
    vectors, facts = read_vectors(lists(tmp_path, [[1e300, 1, 1], [1e30, 1, 1]]), 0, 2, LOCAL)
    check_vectors(vectors, facts, (0, 3))
    assert [fact.get("reason") for fact in facts] == [Reason.NON_FINITE, None]


def test_a_file_whose_row_count_changed_is_refused_by_name(source):
    source = replace(source, file_rows=[5, 0, 5, 1])
    with pytest.raises(InputError, match=r"0\.parquet.*4.*5"):
        read_vectors(source, 0, 2, LOCAL)


def test_a_missing_file_is_named(source):
    source.files[2] += ".none"
    with pytest.raises(StorageError, match=r"2\.parquet\.none"):
        read_vectors(source, 3, 6, LOCAL)


# --- half precision ---

HALVES = np.array([[1.5, -0.0, 65504], [6e-8, 0.1, -2], [3, 4, 5], [0.3, 0.7, 0.9]], np.float16)
KINDS = {
    "list": pa.list_(pa.float16()),
    "large": pa.large_list(pa.float16()),
    "fixed": pa.list_(pa.float16(), 3),
}


def halves(tmp_path, kind="list", change=None):
    """Four float16 vectors in two row groups; ``change`` replaces the third."""
    path = f"{tmp_path}/half.parquet"
    values = [row if i != 2 or change is None else change[0] for i, row in enumerate(HALVES.tolist())]
    pq.write_table(pa.table({"embedding": pa.array(values, KINDS[kind])}), path, row_group_size=3)
    return VectorSource([path], [4], ["embedding"], 3, True)


@pytest.mark.parametrize("kind", KINDS)
def test_float16_vectors_of_equal_length_are_unchanged(tmp_path, kind):
    source = halves(tmp_path, kind)
    for start, stop in ((0, 4), (1, 3), (2, 4), (3, 4)):
        vectors, facts = read_vectors(source, start, stop, LOCAL)
        assert vectors.dtype == np.float16
        assert vectors.tobytes() == HALVES[start:stop].tobytes()
        assert facts == [{}] * (stop - start)


@pytest.mark.parametrize("kind", ["list", "large"])
@pytest.mark.parametrize("odd", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [], None])
def test_a_float16_vector_of_a_different_length_is_a_failure_of_its_row_only(tmp_path, kind, odd):
    vectors, facts = read_vectors(halves(tmp_path, kind, [odd]), 0, 4, LOCAL)
    assert vectors.dtype == np.float16
    assert [fact.get("reason") for fact in facts] == [None, None, Reason.WRONG_LENGTH, None]
    expected = HALVES.copy()
    expected[2] = 0
    assert vectors.tobytes() == expected.tobytes()


def test_two_wrong_lengths_with_the_right_sum_are_both_failures(tmp_path):
    path = f"{tmp_path}/v.parquet"
    values = [[1.0, 2.0, 3.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0]]
    pq.write_table(pa.table({"embedding": pa.array(values, KINDS["list"])}), path)
    vectors, facts = read_vectors(VectorSource([path], [3], ["embedding"], 3, True), 0, 3, LOCAL)
    assert [fact.get("reason") for fact in facts] == [None, Reason.WRONG_LENGTH, Reason.WRONG_LENGTH]
    np.testing.assert_array_equal(vectors, [[1, 2, 3], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_null_in_a_float16_vector_is_not_read_as_zero(tmp_path, kind):
    vectors, facts = read_vectors(halves(tmp_path, kind, [[1.0, None, 3.0]]), 0, 4, LOCAL)
    check_vectors(vectors, facts, (0, 3))
    assert vectors.dtype == np.float16
    assert [fact.get("reason") for fact in facts] == [None, None, Reason.NON_FINITE, None]


def test_a_null_vector_of_fixed_length_is_a_failure_of_its_row(tmp_path):
    vectors, facts = read_vectors(halves(tmp_path, "fixed", [None]), 0, 4, LOCAL)
    assert vectors.dtype == np.float16
    assert [fact.get("reason") for fact in facts] == [None, None, Reason.WRONG_LENGTH, None]


def vectors_of(uris):
    return from_vectors([open_table(uri, LOCAL) for uri in uris], uris, Config())


def manifest(path, values, kind):
    n = len(values)
    columns = {
        "id": [f"{path.name}-{i}" for i in range(n)],
        "real_or_synthetic": ["real", "synthetic"] * (n // 2),
        "embedding": pa.array(values, kind),
    }
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "half"),
    [
        *((kind, True) for kind in KINDS.values()),
        (pa.list_(pa.float32()), False),
        (pa.list_(pa.float64(), 3), False),
        (pa.list_(pa.int32()), False),
    ],
)
def test_a_source_is_half_if_its_embeddings_are_float16(tmp_path, kind, half):
    uri = manifest(tmp_path / "a.parquet", [[1, 2, 3], [4, 5, 6]], kind)
    source = vectors_of([uri]).vectors
    assert source.half == half
    vectors, _ = read_vectors(source, 0, 2, LOCAL)
    assert vectors.dtype == (np.float16 if half else np.float32)
    np.testing.assert_array_equal(vectors, [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("half_first", [True, False])
def test_files_of_halves_and_of_wider_numbers_are_refused_or_read_without_loss(tmp_path, half_first):
    wide = [[1e5, 1.0001, 3.0], [4.0, 5.0, 6.0]]
    files = [
        manifest(tmp_path / "half.parquet", HALVES[2:].tolist(), KINDS["list"]),
        manifest(tmp_path / "wide.parquet", wide, pa.list_(pa.float32())),
    ]
    refusal = None
    try:
        source = vectors_of(files if half_first else files[::-1]).vectors
        parts = [read_vectors(source, start, start + 2, LOCAL)[0] for start in (0, 2)]
        together = read_vectors(source, 0, 4, LOCAL)[0]
    except InputError as error:
        refusal = str(error)
    if refusal is not None:
        assert ".parquet" in refusal
        return
    expected = [HALVES[2:].astype(np.float32), np.array(wide, np.float32)]
    for part, values in zip(parts, expected if half_first else expected[::-1], strict=True):
        assert part.dtype == together.dtype
        np.testing.assert_array_equal(part, values)
    np.testing.assert_array_equal(together, np.concatenate(parts))


# --- decoding each row group once ---


@pytest.fixture
def decoded(monkeypatch):
    """Numbers of the row groups that were decoded, in order."""
    groups, read = [], pq.ParquetFile.read_row_group

    def count(self, i, *args, **kwargs):
        groups.append(i)
        return read(self, i, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", count)
    return groups


def test_shards_of_one_row_group_decode_it_once(tmp_path, decoded):
    path = f"{tmp_path}/v.parquet"
    pq.write_table(pa.table({"embedding": pa.array(VALUES.tolist())}), path, row_group_size=5)
    source = VectorSource([path], [10], ["embedding"], 3)
    for start in range(0, 10, 2):
        np.testing.assert_array_equal(read_vectors(source, start, start + 2, LOCAL)[0], VALUES[start : start + 2])
    assert decoded == [0, 1]
    # Only the row group decoded last is kept.
    read_vectors(source, 0, 1, LOCAL)
    assert decoded == [0, 1, 0]


def test_other_columns_of_the_same_row_group_are_decoded_separately(tmp_path, decoded):
    source = columns(tmp_path, a=[1.0, 2.0], b=[3.0, 4.0])
    np.testing.assert_array_equal(read_vectors(source, 0, 2, LOCAL)[0], [[1, 3], [2, 4]])
    np.testing.assert_array_equal(
        read_vectors(replace(source, columns=["b", "a"]), 0, 2, LOCAL)[0], [[3, 1], [4, 2]]
    )
    np.testing.assert_array_equal(read_vectors(replace(source, columns=["b"]), 0, 2, LOCAL)[0], [[3], [4]])


def test_the_same_row_group_of_another_file_is_decoded_separately(tmp_path):
    sources = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        sources.append(columns(tmp_path / str(i), a=[1.0 + i, 2.0 + i]))
    for i in (0, 1, 0):
        np.testing.assert_array_equal(read_vectors(sources[i], 0, 2, LOCAL)[0][:, 0], [1 + i, 2 + i])


@pytest.mark.parametrize("how", ["rename", "overwrite"])
def test_a_file_that_is_replaced_is_read_again(tmp_path, how):
    source = columns(tmp_path, a=[1.0, 2.0], b=[3.0, 4.0])
    path = tmp_path / "v.parquet"
    np.testing.assert_array_equal(read_vectors(source, 0, 2, LOCAL)[0], [[1, 3], [2, 4]])
    size = path.stat().st_size
    if how == "rename":
        (tmp_path / "new").mkdir()
        columns(tmp_path / "new", a=[5.0, 6.0], b=[7.0, 8.0])
        os.replace(tmp_path / "new" / "v.parquet", path)
    else:
        columns(tmp_path, a=[5.0, 6.0], b=[7.0, 8.0])
    # The new file has the same size in bytes, so the size alone does not show the change.
    assert path.stat().st_size == size
    np.testing.assert_array_equal(read_vectors(source, 0, 2, LOCAL)[0], [[5, 7], [6, 8]])
    path.unlink()
    with pytest.raises(StorageError, match=r"v\.parquet"):
        read_vectors(source, 0, 2, LOCAL)


def test_a_file_whose_folder_has_disappeared_is_not_missing(tmp_path):
    (tmp_path / "mount").mkdir()
    source = columns(tmp_path / "mount", a=[1.0, 2.0])
    (tmp_path / "mount").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageUnavailable, match="mount has disappeared"):
        read_vectors(source, 0, 2, StorageConfig(retry_s=0.3))


def test_an_object_that_is_replaced_is_read_again(s3, tmp_path):
    storage, bucket = StorageConfig(endpoint_url=s3.endpoint_url), s3.bucket()
    for first in (1.0, 5.0):
        columns(tmp_path, a=[first, 2.0])
        s3.client.put_object(Bucket=bucket, Key="v.parquet", Body=(tmp_path / "v.parquet").read_bytes())
        source = VectorSource([f"s3://{bucket}/v.parquet"], [2], ["a"], 1)
        for _ in range(2):
            np.testing.assert_array_equal(read_vectors(source, 0, 2, storage)[0], [[first], [2]])


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


def test_only_the_search_range_must_be_nonzero():
    facts = [{}, {}]
    check_vectors(np.array([[0, 0, 5], [5, 0, 0]], np.float32), facts, (0, 2))
    assert [fact.get("reason") for fact in facts] == [Reason.ZERO_VECTOR, None]


def test_zero_vectors_are_usable_where_no_directions_are_compared():
    facts = [{}, {}, {}]
    check_vectors(np.array([[0, 0], [0, 1], [0, np.inf]], np.float32), facts, None)
    assert [fact.get("reason") for fact in facts] == [None, None, Reason.NON_FINITE]


def test_a_nan_outside_the_search_range_is_a_failure_too():
    facts = [{}]
    check_vectors(np.array([[1, 1, np.nan]], np.float32), facts, (0, 2))
    assert facts[0]["reason"] == Reason.NON_FINITE


def test_an_earlier_reason_is_kept():
    facts = [{"reason": "truncated", "detail": "as found"}]
    check_vectors(np.zeros((1, 2), np.float32), facts, (0, 2))
    assert facts == [{"reason": "truncated", "detail": "as found"}]


def test_float16_vectors_are_checked_without_conversion():
    # The smallest positive float16 is not zero, and the largest is finite.
    facts = [{} for _ in range(4)]
    check_vectors(np.array([[0, 6e-8], [65504, 0], [np.inf, 1], [-0.0, 0]], np.float16), facts, (0, 2))
    assert [fact.get("reason") for fact in facts] == [None, None, Reason.NON_FINITE, Reason.ZERO_VECTOR]
