"""The door to disks and S3: whole-or-nothing writes, listings, and foreign errors as StorageError."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale import filesystems as fsys
from synthscale.config import StorageConfig
from synthscale.errors import StorageError

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


def test_s3_uris_stay_but_for_trailing_slashes():
    assert fsys.absolute("s3://bucket/a/b//") == "s3://bucket/a/b"


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x", "hdfs://x"])
def test_unknown_schemes_are_refused_by_name(uri):
    with pytest.raises(StorageError, match=uri):
        fsys.absolute(uri)


# --- reading and writing ---


def test_what_is_written_is_read_back(place):
    top, storage = place
    fsys.write_bytes(f"{top}/deep/er/x.bin", b"first", storage)
    fsys.write_bytes(f"{top}/deep/er/x.bin", b"second", storage)
    assert fsys.read_bytes(f"{top}/deep/er/x.bin", storage) == b"second"
    assert fsys.exists(f"{top}/deep/er/x.bin", storage)
    assert fsys.is_folder(f"{top}/deep", storage)
    assert not fsys.is_folder(f"{top}/deep/er/x.bin", storage)
    assert not fsys.exists(f"{top}/none", storage)


def test_tables_are_read_back_with_the_columns_asked_for(place):
    top, storage = place
    fsys.write_table(f"{top}/t.parquet", TABLE, storage)
    assert fsys.read_table(f"{top}/t.parquet", storage).equals(TABLE)
    assert fsys.read_table(f"{top}/t.parquet", storage, ["text"]).column_names == ["text"]


def test_listings_are_deep_sorted_and_give_sizes(place):
    top, storage = place
    for name, data in (("b/2.bin", b"12"), ("a.bin", b"1"), ("b/1.bin", b"123")):
        fsys.write_bytes(f"{top}/{name}", data, storage)
    found = fsys.list_files(top, storage)
    bare = top.removeprefix("s3://")
    assert [(info.path.removeprefix(bare), info.size_bytes) for info in found] == [
        ("/a.bin", 1),
        ("/b/1.bin", 3),
        ("/b/2.bin", 2),
    ]
    assert all((info.etag is not None) == fsys.is_s3(top) for info in found)


def test_listings_see_what_another_writer_added(s3):
    bucket, storage = s3.bucket(), StorageConfig(endpoint_url=s3.endpoint_url)
    fsys.write_bytes(f"s3://{bucket}/top/a.bin", b"1", storage)
    assert len(fsys.list_files(f"s3://{bucket}/top", storage)) == 1
    assert not fsys.exists(f"s3://{bucket}/top/b.bin", storage)
    s3.client.put_object(Bucket=bucket, Key="top/b.bin", Body=b"1")
    assert len(fsys.list_files(f"s3://{bucket}/top", storage)) == 2
    assert fsys.exists(f"s3://{bucket}/top/b.bin", storage)


def test_remove_takes_files_and_folders_and_does_not_mind_nothing(place):
    top, storage = place
    for name in ("a.bin", "b/1.bin", "b/c/2.bin"):
        fsys.write_bytes(f"{top}/{name}", b"1", storage)
    fsys.remove(f"{top}/b", storage)
    fsys.remove(f"{top}/none", storage)
    assert len(fsys.list_files(top, storage)) == 1
    fsys.remove(f"{top}/a.bin", storage)
    assert not fsys.exists(f"{top}/a.bin", storage)


# --- whole or nothing ---


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


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        fsys.write_bytes(f"{tmp_path}/x.bin", "text is no bytes", LOCAL)
    assert os.listdir(tmp_path) == []


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    """At the moment of the rename the target is still the old one, and the new one is whole."""
    seen = {}
    replace = os.replace

    def look(source, target):
        seen["new"], seen["old"] = Path(source).read_bytes(), os.path.exists(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    fsys.write_bytes(f"{tmp_path}/x.bin", b"whole", LOCAL)
    assert seen == {"new": b"whole", "old": False}


# --- errors ---


def test_a_missing_file_is_named(place):
    top, storage = place
    with pytest.raises(StorageError, match=r"none\.bin: cannot read: not found"):
        fsys.read_bytes(f"{top}/none.bin", storage)
    with pytest.raises(StorageError, match=r"none\.parquet: cannot read: not found"):
        fsys.read_table(f"{top}/none.parquet", storage)


def test_a_missing_bucket_is_named(s3):
    storage = StorageConfig(endpoint_url=s3.endpoint_url)
    with pytest.raises(StorageError, match="no-such-bucket-anywhere"):
        fsys.write_bytes("s3://no-such-bucket-anywhere/x", b"1", storage)


def test_a_server_that_does_not_answer_is_a_storage_error():
    storage = StorageConfig(endpoint_url="http://127.0.0.1:9", region="us-east-1", anon=True)
    fs = fsys.filesystem("s3://bucket/x", storage)
    fs.config_kwargs = {**getattr(fs, "config_kwargs", {}), "retries": {"max_attempts": 0}}
    fs.retries = 1
    with pytest.raises(StorageError, match="s3://bucket/x"):
        fsys.read_bytes("s3://bucket/x", storage)


def test_a_profile_that_does_not_exist_is_a_storage_error():
    storage = StorageConfig(profile="no-such-profile-anywhere")
    with pytest.raises(StorageError, match="no-such-profile"):
        fsys.exists("s3://bucket/x", storage)


def test_a_file_in_the_way_of_a_folder_is_a_storage_error(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(StorageError, match="f/x"):
        fsys.write_bytes(f"{tmp_path}/f/x", b"1", LOCAL)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_parquet_file_is_named(place, damage):
    top, storage = place
    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink)
    data = sink.getvalue().to_pybytes()
    data = {"truncated": data[: len(data) // 2], "garbage": b"x" * 500, "empty": b""}[damage]
    fsys.write_bytes(f"{top}/bad.parquet", data, storage)
    with pytest.raises(StorageError, match=r"bad\.parquet"):
        fsys.read_table(f"{top}/bad.parquet", storage)


def test_parquet_with_damaged_pages_is_named(place):
    top, storage = place
    sink = pa.BufferOutputStream()
    values = pa.table({"x": list(range(5000))})
    pq.write_table(values, sink, compression="zstd", use_dictionary=False)
    data = bytearray(sink.getvalue().to_pybytes())
    data[60:400] = bytes(340)
    fsys.write_bytes(f"{top}/bad.parquet", bytes(data), storage)
    with pytest.raises(StorageError, match=r"bad\.parquet"):
        fsys.read_table(f"{top}/bad.parquet", storage)
