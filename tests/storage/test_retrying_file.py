"""Files that are opened again, where they were, after a read has failed with a transient error."""

import errno
import io
import os
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthscale.config import StorageConfig
from synthscale.errors import StorageUnavailable
from synthscale.storage import filesystems as fsys
from synthscale.storage import retries
from synthscale.storage.retrying_file import RetryingFile
from tests.object_server import Fault, ObjectServer

DATA = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "_MAX_PAUSE_S", 0.05)


class Breaking(io.BytesIO):
    """A file of which every third read breaks; once broken it stays so, as a handle on a lost mount does."""

    reads = 0
    is_broken = False

    def read(self, size=-1):
        Breaking.reads += 1
        self.is_broken |= Breaking.reads % 3 == 0
        if self.is_broken:
            raise OSError(errno.ESTALE, "Stale file handle")
        return super().read(size)


def breaking(data, etag=lambda: "etag", retry_s=20.0):
    return RetryingFile(lambda: (Breaking(data), etag()), "x.bin", retry_s)


def test_reads_go_on_where_they_broke():
    with breaking(DATA) as file:
        pieces = []
        while piece := file.read(1000):
            pieces.append(piece)
        assert b"".join(pieces) == DATA
        assert file.seek(-10, os.SEEK_END) == len(DATA) - 10
        assert file.read() == DATA[-10:]
        assert file.tell() == len(DATA)


def archives():
    table, tar, zipped = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"x": list(range(5000))}), table)
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for i in range(5):
            member = tarfile.TarInfo(f"{i}.bin")
            member.size = len(DATA)
            archive.addfile(member, io.BytesIO(DATA))
    with zipfile.ZipFile(zipped, "w") as archive:
        for i in range(5):
            archive.writestr(f"{i}.bin", DATA)
    return table.getvalue(), tar.getvalue(), zipped.getvalue()


def test_readers_of_archives_and_tables_survive_broken_handles():
    table, tar, zipped = archives()
    with breaking(table) as file:
        assert pq.ParquetFile(file).read().column("x").to_pylist() == list(range(5000))
    with breaking(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        assert [archive.extractfile(member).read() for member in archive] == [DATA] * 5
    with breaking(zipped) as file, zipfile.ZipFile(file) as archive:
        assert [archive.read(name) for name in archive.namelist()] == [DATA] * 5


def test_a_handle_that_breaks_for_too_long_ends_the_read():
    def stale():
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    with pytest.raises(StorageUnavailable, match=r"x\.bin: cannot read: Transport"):
        RetryingFile(stale, "x.bin", 0.1)


def test_a_file_that_is_replaced_between_two_reads_is_not_mixed():
    etags = iter("abcdef")
    with breaking(DATA, etag=lambda: next(etags)) as file:
        Breaking.reads = 0
        assert file.read(1000) + file.read(1000) == DATA[:2000]
        with pytest.raises(OSError, match="changed while it was read"):
            file.read(1000)


@pytest.fixture(scope="module")
def server():
    with ObjectServer() as server:
        yield server


@pytest.mark.parametrize("kind", ["slow_down", "error", "reset", "cut"])
def test_a_file_on_s3_is_read_in_spite_of_faults_and_given_up_if_they_last(server, s3_clients_of_its_own, kind):
    table = archives()[0]
    server.put("bucket", "t.parquet", table)
    storage = StorageConfig(endpoint_url=server.endpoint_url, retry_s=20)
    server.fault(Fault(r"bucket/t", kind, times=4))
    assert fsys.read_table("s3://bucket/t.parquet", storage).num_rows == 5000
    assert server.asked()["bucket/t.parquet"] >= 5
    server.fault(Fault(r"bucket/t", kind))
    short = storage.model_copy(update={"retry_s": 0.3})
    for read in (fsys.read_table, fsys.read_bytes):
        with pytest.raises(StorageUnavailable, match=r"t\.parquet: cannot read"):
            read("s3://bucket/t.parquet", short)
    with pytest.raises(StorageUnavailable), fsys.open_file("s3://bucket/t.parquet", short) as file:
        file.read(100)
    server.fault()
