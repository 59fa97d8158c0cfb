"""Compare-and-swap on one file, on a local disk and on S3."""

import errno
import fcntl
import io
import os
import threading
import time

import pytest

from synthscale.config import StorageConfig
from synthscale.errors import StorageError
from synthscale.storage import filesystems as fsys
from synthscale.storage.conditional_file import Version, conditional_file

LOCAL = StorageConfig()


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """A folder that need not exist, and its storage settings."""
    if request.param == "local":
        return f"{tmp_path}/run", LOCAL
    s3 = request.getfixturevalue("s3")
    return f"s3://{s3.bucket()}/run", StorageConfig(endpoint_url=s3.endpoint_url)


@pytest.fixture
def file(folder):
    uri, storage = folder
    return conditional_file(f"{uri}/x.json", storage)


def test_a_file_is_created_once(file):
    assert file.read() is None
    assert file.create(b"one") is not None
    assert file.create(b"two") is None
    assert file.read().data == b"one"


def test_only_the_current_version_is_replaced(file):
    first = file.create(b"one")
    second = file.replace(b"two", first)
    assert file.replace(b"three", first) is None
    assert file.read().data == b"two"
    assert file.replace(b"three", second) is not None
    assert file.read().data == b"three"


def test_a_version_that_was_read_can_be_replaced(file):
    file.create(b"one")
    assert file.replace(b"two", file.read()) is not None
    assert file.read().data == b"two"


def test_a_missing_file_is_not_replaced(file):
    seen = file.create(b"one")
    file.remove(seen)
    assert file.read() is None
    assert file.replace(b"two", seen) is None
    assert file.read() is None


def test_only_the_current_version_is_removed(file):
    first = file.create(b"one")
    second = file.replace(b"two", first)
    file.remove(first)
    assert file.read().data == b"two"
    file.remove(second)
    file.remove(second)
    assert file.read() is None


def test_the_storages_clock_is_that_of_its_files_and_asking_leaves_nothing(file, folder):
    file.create(b"one")
    # S3 gives whole seconds.
    assert -2 <= file.now_s() - file.read().modified_s < 60
    assert len(fsys.list_files(*folder)) == 1


def test_of_many_that_replace_at_once_one_wins(file):
    for _ in range(5):
        seen = file.read() or file.create(b"start")
        start, winners = threading.Barrier(4), []

        def replace(i, seen=seen, start=start, winners=winners):
            start.wait()
            if file.replace(b"%d at %d" % (i, time.monotonic_ns()), seen) is not None:
                winners.append(i)

        threads = [threading.Thread(target=replace, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        assert file.read().data.startswith(b"%d at" % winners[0])


def test_a_file_that_was_replaced_while_waiting_for_its_lock_is_opened_again(tmp_path, monkeypatch):
    file = conditional_file(f"{tmp_path}/x.json", LOCAL)
    first = file.create(b"one")
    lock, others = fcntl.flock, [b"two"]

    def after_another(descriptor, operation):
        if others:
            fsys.write_bytes(file.uri, others.pop(), LOCAL)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_another)
    assert file.replace(b"three", first) is None
    assert file.read().data == b"two"


def test_a_lock_that_is_not_released_is_an_error(tmp_path, monkeypatch):
    file = conditional_file(f"{tmp_path}/x.json", LOCAL)
    first = file.create(b"one")
    monkeypatch.setattr("synthscale.storage.conditional_file._LOCK_PAUSE_S", 0)
    with open(file.uri, "rb+") as paused:
        fcntl.flock(paused.fileno(), fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            file.replace(b"two", first)
    assert file.replace(b"two", first) is not None


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    file = conditional_file(f"{tmp_path}/x.json", LOCAL)
    first = file.create(b"one")
    assert file.replace(b"two", first) is not None
    assert file.replace(b"two", Version(b"other")) is None


def test_a_file_that_cannot_be_written_is_not_left_empty(tmp_path, monkeypatch):
    """An empty lease keeps other drivers away for a minute, and so the same command after space was freed."""
    file = conditional_file(f"{tmp_path}/x.json", LOCAL)

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("synthscale.storage.conditional_file.open", Full, raising=False)
        with pytest.raises(OSError, match="No space left"):
            file.create(b"one")
    assert os.listdir(tmp_path) == []
    assert file.create(b"one") is not None


def test_a_missing_bucket_is_named(s3):
    file = conditional_file("s3://none-of-this-name/run/x.json", StorageConfig(endpoint_url=s3.endpoint_url))
    assert file.read() is None
    where = r"cannot write s3://none-of-this-name/run/x\.json: there is no such bucket"
    with pytest.raises(StorageError, match=where), file.errors("write"):
        file.create(b"one")
