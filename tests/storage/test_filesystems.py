"""File access on local disks and S3: atomic writes, listings, and file system errors as StorageError."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale.config import StorageConfig
from synthscale.errors import StorageError, StorageUnavailable
from synthscale.storage import filesystems as fsys

LOCAL = StorageConfig()
TABLE = pa.table({"row": [1, 2, 3], "text": ["a", None, "c"]})


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A folder to write to, on a disk and on S3, with the storage settings that reach it."""
    if request.param == "local":
        return str(tmp_path / "top"), LOCAL
    s3 = request.getfixturevalue("s3")
    return f"s3://{s3.bucket()}/top", StorageConfig(endpoint_url=s3.endpoint_url)


# --- locations ---


def test_local_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert fsys.absolute("a/../b/") == f"{tmp_path}/b"
    assert fsys.absolute("~/x") == "/home/someone/x"
    assert fsys.absolute("file:///a/b/") == "/a/b"


def test_only_trailing_slashes_are_removed_from_s3_uris():
    assert fsys.absolute("s3://bucket/a/b//") == "s3://bucket/a/b"


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x", "hdfs://x"])
def test_unsupported_schemes_are_refused(uri):
    with pytest.raises(StorageError, match=uri):
        fsys.absolute(uri)


# --- reading and writing ---


def test_written_bytes_are_read_back(place):
    top, storage = place
    fsys.write_bytes(f"{top}/deep/er/x.bin", b"first", storage)
    fsys.write_bytes(f"{top}/deep/er/x.bin", b"second", storage)
    assert fsys.read_bytes(f"{top}/deep/er/x.bin", storage) == b"second"
    assert fsys.exists(f"{top}/deep/er/x.bin", storage)
    assert fsys.is_folder(f"{top}/deep", storage)
    assert not fsys.is_folder(f"{top}/deep/er/x.bin", storage)
    assert not fsys.exists(f"{top}/none", storage)


def test_tables_are_read_back_whole_or_by_column(place):
    top, storage = place
    fsys.write_table(f"{top}/t.parquet", TABLE, storage)
    assert fsys.read_table(f"{top}/t.parquet", storage).equals(TABLE)
    assert fsys.read_table(f"{top}/t.parquet", storage, ["text"]).column_names == ["text"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", ["vector", "a.b", "list", "mean color"])
def test_vector_columns_are_read_back_bit_for_bit(place, dtype, name):
    top, storage = place
    width = np.dtype(dtype).itemsize
    # Random bits include NaNs with payloads and denormals; both zeros and infinities are added below.
    bits = np.random.default_rng(0).integers(0, 256, 300 * 7 * width, np.uint8)
    values = bits.view(dtype)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, np.finfo(dtype).smallest_subnormal], dtype)
    values[:6] = special
    table = pa.table(
        {
            "row": np.arange(300),
            name: pa.FixedSizeListArray.from_arrays(pa.array(values), 7),
            "text": ["a", None, "b"] * 100,
            "tags": [["x"], [], None] * 100,
        }
    )
    fsys.write_table(f"{top}/v.parquet", table, storage)
    for result in (fsys.read_table(f"{top}/v.parquet", storage), table):
        assert result.schema == table.schema
        column = result.column(name).combine_chunks()
        assert column.flatten().to_numpy(zero_copy_only=False).tobytes() == values.tobytes()
        assert result.drop_columns([name]).equals(table.drop_columns([name]))


def test_null_vectors_and_empty_tables_are_written(place):
    top, storage = place
    kind = pa.list_(pa.float16(), 2)
    for values in ([[1.0, 2.0], None, [3.0, None]], []):
        table = pa.table({"vector": pa.array(values, kind)})
        fsys.write_table(f"{top}/v.parquet", table, storage)
        assert fsys.read_table(f"{top}/v.parquet", storage).equals(table)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.string(), ["a", "b", "c", "d"]),
        (pa.bool_(), [True, False, False, True]),
        (pa.int64(), [1, 2, 3, 4]),
        (pa.float64(), [1.0, 2.0, 3.0, 4.0]),
        (pa.uint8(), [1, 2, 3, 255]),
        (pa.timestamp("us"), [1, 2, 3, 4]),
        (pa.list_(pa.string()), [["a"], [], None, ["b", "c"]]),
        (pa.struct([("x", pa.string())]), [{"x": "a"}, {"x": "b"}, None, {"x": "c"}]),
    ],
)
def test_fixed_size_list_columns_of_any_element_type_are_written(tmp_path, kind, values):
    column = pa.FixedSizeListArray.from_arrays(pa.array(values, kind), 2)
    table = pa.table({"row": [0, 1], "box": column})
    fsys.write_table(f"{tmp_path}/t.parquet", table, LOCAL)
    assert fsys.read_table(f"{tmp_path}/t.parquet", LOCAL).equals(table)


def test_vectors_use_byte_stream_split_and_texts_a_dictionary(tmp_path):
    values = np.random.default_rng(1).normal(size=3000).astype(np.float16)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), 3)
    fsys.write_table(f"{tmp_path}/t.parquet", pa.table({"text": ["a"] * 1000, "vector": vectors}), LOCAL)
    group = pq.ParquetFile(f"{tmp_path}/t.parquet").metadata.row_group(0)
    assert "RLE_DICTIONARY" in group.column(0).encodings
    assert "BYTE_STREAM_SPLIT" in group.column(1).encodings
    assert not any("DICTIONARY" in encoding for encoding in group.column(1).encodings)


def test_listings_are_recursive_sorted_and_give_sizes(place):
    top, storage = place
    for name, data in (("b/2.bin", b"12"), ("a.bin", b"1"), ("b/1.bin", b"123")):
        fsys.write_bytes(f"{top}/{name}", data, storage)
    files = fsys.list_files(top, storage)
    bare = top.removeprefix("s3://")
    assert [(info.path.removeprefix(bare), info.size_bytes) for info in files] == [
        ("/a.bin", 1),
        ("/b/1.bin", 3),
        ("/b/2.bin", 2),
    ]
    assert all((info.etag is not None) == fsys.is_s3(top) for info in files)


def test_listings_are_not_cached(s3):
    bucket, storage = s3.bucket(), StorageConfig(endpoint_url=s3.endpoint_url)
    fsys.write_bytes(f"s3://{bucket}/top/a.bin", b"1", storage)
    assert len(fsys.list_files(f"s3://{bucket}/top", storage)) == 1
    assert not fsys.exists(f"s3://{bucket}/top/b.bin", storage)
    s3.client.put_object(Bucket=bucket, Key="top/b.bin", Body=b"1")
    assert len(fsys.list_files(f"s3://{bucket}/top", storage)) == 2
    assert fsys.exists(f"s3://{bucket}/top/b.bin", storage)


def test_remove_deletes_files_and_folders_and_ignores_missing_ones(place):
    top, storage = place
    for name in ("a.bin", "b/1.bin", "b/c/2.bin"):
        fsys.write_bytes(f"{top}/{name}", b"1", storage)
    fsys.remove(f"{top}/b", storage)
    fsys.remove(f"{top}/none", storage)
    assert len(fsys.list_files(top, storage)) == 1
    fsys.remove(f"{top}/a.bin", storage)
    assert not fsys.exists(f"{top}/a.bin", storage)


# --- atomic writes ---


def test_a_failing_rename_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    fsys.write_bytes(f"{tmp_path}/x.bin", b"old", LOCAL)

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=r"x\.bin.*No space left"):
        fsys.write_bytes(f"{tmp_path}/x.bin", b"new", LOCAL)
    assert os.listdir(tmp_path) == ["x.bin"]
    assert (tmp_path / "x.bin").read_bytes() == b"old"


def test_an_interrupted_write_leaves_no_file_and_no_temporary(tmp_path, monkeypatch):
    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fsys.write_bytes(f"{tmp_path}/x.bin", b"new", LOCAL)
    assert os.listdir(tmp_path) == []


def test_a_failing_write_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        fsys.write_bytes(f"{tmp_path}/x.bin", "text is no bytes", LOCAL)
    assert os.listdir(tmp_path) == []


def test_a_file_is_complete_before_it_is_renamed_to_its_target(tmp_path, monkeypatch):
    """Until the rename the target does not exist; at the rename the temporary file is complete."""
    seen = {}
    replace = os.replace

    def look(source, target):
        seen["new"], seen["old"] = Path(source).read_bytes(), os.path.exists(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    fsys.write_bytes(f"{tmp_path}/x.bin", b"whole", LOCAL)
    assert seen == {"new": b"whole", "old": False}


def filled(data):
    """Return a function that writes ``data`` to a path in two steps, like a library's writer."""

    def write(path):
        with open(path, "wb") as file:
            file.write(data[:3])
            file.flush()
            file.write(data[3:])

    return write


def test_write_with_puts_the_written_file_at_its_location(place):
    top, storage = place
    for data in (b"first of them", b"second"):
        fsys.write_with_callback(f"{top}/deep/er/x.index", filled(data), storage)
        assert fsys.read_bytes(f"{top}/deep/er/x.index", storage) == data
    assert len(fsys.list_files(top, storage)) == 1


def test_write_with_keeps_the_old_file_until_the_new_one_is_complete(place):
    top, storage = place
    fsys.write_bytes(f"{top}/x.index", b"old", storage)
    seen = []

    def write(path):
        filled(b"whole")(path)
        assert not path.startswith("s3://")
        seen.append(fsys.read_bytes(f"{top}/x.index", storage))

    fsys.write_with_callback(f"{top}/x.index", write, storage)
    assert seen == [b"old"]
    assert fsys.read_bytes(f"{top}/x.index", storage) == b"whole"


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("odd"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("started", [True, False])
def test_a_failing_writer_leaves_only_the_old_file(place, tmp_path, monkeypatch, old, error, started):
    top, storage = place
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    if old is not None:
        fsys.write_bytes(f"{top}/x.index", old, storage)

    def write(path):
        if started:
            filled(b"half of it")(path)
        raise error

    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        fsys.write_with_callback(f"{top}/x.index", write, storage)
    if expected is StorageError:
        assert "x.index: cannot write" in str(caught.value)
        assert "No space left" in str(caught.value)
    assert os.listdir(tmp_path / "temporary") == []
    if old is None:
        assert not fsys.exists(f"{top}/x.index", storage)
        assert not fsys.exists(top, storage) or fsys.list_files(top, storage) == []
    else:
        assert fsys.read_bytes(f"{top}/x.index", storage) == old
        assert len(fsys.list_files(top, storage)) == 1


def test_write_with_leaves_no_file_if_the_rename_fails(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=r"x\.index.*No space left"):
        fsys.write_with_callback(f"{tmp_path}/x.index", filled(b"whole"), LOCAL)
    assert os.listdir(tmp_path) == []


def test_write_with_leaves_no_file_if_s3_refuses_it(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    storage = StorageConfig(endpoint_url=s3.endpoint_url)
    with pytest.raises(StorageError, match="no-such-bucket-anywhere"):
        fsys.write_with_callback("s3://no-such-bucket-anywhere/x.index", filled(b"whole"), storage)
    assert os.listdir(tmp_path) == []


# --- errors ---


def test_the_error_names_a_missing_file(place):
    top, storage = place
    with pytest.raises(StorageError, match=r"none\.bin: cannot read: not found"):
        fsys.read_bytes(f"{top}/none.bin", storage)
    with pytest.raises(StorageError, match=r"none\.parquet: cannot read: not found"):
        fsys.read_table(f"{top}/none.parquet", storage)


def test_the_error_names_a_missing_bucket(s3):
    storage = StorageConfig(endpoint_url=s3.endpoint_url)
    with pytest.raises(StorageError, match="no-such-bucket-anywhere"):
        fsys.write_bytes("s3://no-such-bucket-anywhere/x", b"1", storage)


def test_an_unreachable_server_is_a_storage_error():
    storage = StorageConfig(endpoint_url="http://127.0.0.1:9", region="us-east-1", anon=True, retry_s=0.5)
    with pytest.raises(StorageUnavailable, match="s3://bucket/x"):
        fsys.read_bytes("s3://bucket/x", storage)


def test_a_profile_that_does_not_exist_is_a_storage_error():
    storage = StorageConfig(profile="no-such-profile-anywhere")
    with pytest.raises(StorageError, match="no-such-profile"):
        fsys.exists("s3://bucket/x", storage)


def test_a_file_in_place_of_a_folder_is_a_storage_error(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(StorageError, match="f/x"):
        fsys.write_bytes(f"{tmp_path}/f/x", b"1", LOCAL)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_the_error_names_a_damaged_parquet_file(place, damage):
    top, storage = place
    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink)
    data = sink.getvalue().to_pybytes()
    data = {"truncated": data[: len(data) // 2], "garbage": b"x" * 500, "empty": b""}[damage]
    fsys.write_bytes(f"{top}/bad.parquet", data, storage)
    with pytest.raises(StorageError, match=r"bad\.parquet"):
        fsys.read_table(f"{top}/bad.parquet", storage)


def test_the_error_names_a_parquet_file_with_damaged_pages(place):
    top, storage = place
    sink = pa.BufferOutputStream()
    values = pa.table({"x": list(range(5000))})
    pq.write_table(values, sink, compression="zstd", use_dictionary=False)
    data = bytearray(sink.getvalue().to_pybytes())
    data[60:400] = bytes(340)
    fsys.write_bytes(f"{top}/bad.parquet", bytes(data), storage)
    with pytest.raises(StorageError, match=r"bad\.parquet"):
        fsys.read_table(f"{top}/bad.parquet", storage)
