"""Which errors of storage are transient, permanent or a full disk, and how long transient ones are repeated."""

import errno
import os
import subprocess
import time

import aiohttp
import faiss
import numpy as np
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
)
from s3fs.errors import translate_boto_error

from synthscale.config import StorageConfig
from synthscale.errors import StorageError, StorageFull, StorageUnavailable
from synthscale.storage import filesystems as fsys
from synthscale.storage import retries
from synthscale.storage.fetch import fetch
from synthscale.storage.listing import list_pages
from synthscale.storage.retries import is_full, is_transient, lost_mount, retrying
from synthscale.tables.faults import Reason, RowFault
from synthscale.tables.layout import StoredFile


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "_MAX_PAUSE_S", 0.05)


def refusal(status, code):
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


# --- classification ---


@pytest.mark.parametrize(
    "name", ["ESTALE", "EIO", "ENOTCONN", "ETIMEDOUT", "ECONNRESET", "EHOSTDOWN", "ENODEV", "EAGAIN", "EMFILE"]
)
def test_errors_of_mounts_and_connections_are_transient(name):
    assert is_transient(OSError(getattr(errno, name), "words"))


@pytest.mark.parametrize("name", ["ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ENAMETOOLONG", "ENOSPC"])
def test_errors_of_files_are_permanent(name):
    assert not is_transient(OSError(getattr(errno, name), "words"))


@pytest.mark.parametrize(
    "error", [OSError("not a Parquet file"), ValueError("x"), KeyError("x"), RuntimeError("x"), None]
)
def test_errors_of_contents_are_permanent(error):
    assert not is_transient(error)


@pytest.mark.parametrize("through_s3fs", [False, True])
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (429, "TooManyRequests", True),
        (500, "InternalError", True),
        (502, "502", True),
        (503, "SlowDown", True),
        (504, "GatewayTimeout", True),
        (400, "RequestTimeout", True),
        (400, "ExpiredToken", False),
        (403, "AccessDenied", False),
        (404, "NoSuchKey", False),
        (416, "InvalidRange", False),
        (501, "NotImplemented", False),
        (507, "XMinioStorageFull", False),
    ],
)
def test_answers_of_s3_are_told_apart_by_their_status_also_behind_s3fs(status, code, expected, through_s3fs):
    error = refusal(status, code)
    if through_s3fs:
        error = translate_boto_error(error)
        assert isinstance(error, OSError)
    assert is_transient(error) is expected


def test_requests_without_an_answer_are_transient_and_wrong_settings_are_not():
    url = {"endpoint_url": "http://127.0.0.1:9"}
    for error in (
        EndpointConnectionError(**url),
        ConnectTimeoutError(**url),
        ReadTimeoutError(**url),
        aiohttp.ClientPayloadError("the body broke off"),
        TimeoutError(),
        ConnectionResetError(errno.ECONNRESET, "reset"),
    ):
        assert is_transient(error)
    assert not is_transient(ProfileNotFound(profile="x"))
    assert not is_transient(NoCredentialsError())


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT"])
def test_full_disks_and_quotas_are_recognized_also_in_the_words_of_libraries(name):
    number = getattr(errno, name)
    assert is_full(OSError(number, os.strerror(number)))
    assert is_full(RuntimeError(f"write error in x: 3 != 8 ({os.strerror(number)})"))
    assert is_full(refusal(403, "QuotaExceeded"))
    assert not is_full(OSError(errno.EIO, "words"))


# --- repetition ---


def failing(times, error):
    calls = []

    def action():
        calls.append(time.monotonic())
        if len(calls) <= times:
            raise error
        return "result"

    return action, calls


def test_transient_errors_are_repeated_until_the_result():
    action, calls = failing(4, OSError(errno.ESTALE, "stale"))
    assert retrying(action, "/mnt/x", "read", 20) == "result"
    assert len(calls) == 5


def test_permanent_errors_are_raised_at_once_and_unchanged():
    action, calls = failing(4, PermissionError(errno.EACCES, "no"))
    with pytest.raises(PermissionError):
        retrying(action, "/mnt/x", "read", 20)
    assert len(calls) == 1


def test_the_attempts_end_when_the_time_is_over_counted_from_the_first_failure():
    action, calls = failing(10**6, OSError(errno.ESTALE, "Stale file handle"))
    with pytest.raises(StorageUnavailable) as caught:
        retrying(action, "/mnt/x", "read", 0.4)
    assert calls[-1] - calls[0] >= 0.4
    # Short pauses, but no busy loop.
    assert 5 < len(calls) < 500
    assert str(caught.value).startswith("/mnt/x: cannot read: Stale file handle")
    assert "run the same command again" in str(caught.value)
    assert caught.value.exit_code == 1


def test_without_time_there_is_one_attempt():
    action, calls = failing(10**6, OSError(errno.ESTALE, "stale"))
    with pytest.raises(StorageUnavailable):
        retrying(action, "/mnt/x", "read", 0)
    assert len(calls) == 1


# --- every reader and writer ---


STALE = OSError(errno.ESTALE, "Stale file handle")


@pytest.fixture
def goes_stale(monkeypatch):
    """A function that makes an `os` function, or ``open``, fail n times for paths that contain ``photos``."""

    def make(module, name, times):
        real, failures = getattr(module, name), []

        def replaced(path, *args, **kwargs):
            if "photos" in str(path) and len(failures) < times:
                failures.append(path)
                raise OSError(errno.ESTALE, "Stale file handle")
            return real(path, *args, **kwargs)

        monkeypatch.setattr(module, name, replaced)
        return failures

    return make


def test_a_local_image_on_a_stale_mount_is_waited_for_and_is_no_row_failure(tmp_path, goes_stale):
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    path.write_bytes(b"bytes")
    failures = goes_stale(os, "stat", 3)
    assert fetch(StoredFile(str(path)), StorageConfig(retry_s=20)) == b"bytes"
    assert len(failures) == 3
    goes_stale(os, "stat", 10**6)
    with pytest.raises(StorageUnavailable, match=r"a\.png: cannot read: Stale"):
        fetch(StoredFile(str(path)), StorageConfig(retry_s=0.2))


@pytest.mark.parametrize(
    "read",
    [
        lambda path, storage: fsys.exists(path, storage),
        lambda path, storage: fsys.is_folder(os.path.dirname(path), storage),
        lambda path, storage: fsys.stat_or_none(path, storage).size_bytes == 5,
        lambda path, storage: len(next(list_pages(os.path.dirname(path), storage))) == 1,
    ],
)
def test_a_stale_mount_is_not_taken_for_an_empty_or_missing_folder(tmp_path, goes_stale, read):
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    path.write_bytes(b"bytes")
    failures = [goes_stale(os, name, 2) for name in ("stat", "scandir")]
    assert read(str(path), StorageConfig(retry_s=20))
    assert any(len(names) == 2 for names in failures)
    for name in ("stat", "scandir"):
        goes_stale(os, name, 10**6)
    with pytest.raises(StorageUnavailable, match="Stale"):
        read(str(path), StorageConfig(retry_s=0.1))


# --- lost mounts ---


@pytest.fixture
def photos(tmp_path):
    path = tmp_path / "photos" / "cat" / "a.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"bytes")
    return tmp_path / "photos"


@pytest.mark.parametrize("leaves_folder", [True, False])
def test_a_file_whose_input_folder_has_disappeared_is_not_missing(photos, leaves_folder):
    stored = StoredFile(f"{photos}/cat/a.png", 5, fsys.file_etag(os.stat(f"{photos}/cat/a.png")))
    photos.rename(photos.with_name("elsewhere"))
    if leaves_folder:
        photos.mkdir()
    with pytest.raises(StorageUnavailable, match="photos has disappeared"):
        fetch(stored, StorageConfig(retry_s=0.1), [str(photos)])


def test_a_mount_that_returns_in_time_loses_no_file(photos):
    stored = StoredFile(f"{photos}/cat/a.png")
    away = photos.with_name("elsewhere")
    photos.rename(away)
    returning = subprocess.Popen(["sh", "-c", f"sleep 0.5; mv '{away}' '{photos}'"])
    assert fetch(stored, StorageConfig(retry_s=60), [str(photos)]) == b"bytes"
    assert returning.wait() == 0


def test_a_deleted_file_or_label_is_missing_while_other_files_are_there(photos):
    (photos / "dog").mkdir()
    (photos / "dog" / "b.png").write_bytes(b"x")
    for name in ("cat/none.png", "bird/none.png"):
        with pytest.raises(RowFault) as caught:
            fetch(StoredFile(f"{photos}/{name}", 5, "etag"), StorageConfig(retry_s=60), [str(photos)])
        assert caught.value.reason is Reason.NOT_FOUND


def test_images_of_a_table_have_no_known_folder_so_an_empty_mount_point_above_theirs_decides(tmp_path):
    mount = tmp_path / "mount"
    mount.mkdir()
    assert lost_mount(f"{mount}/cat/a.png", was_listed=True) == str(mount)
    assert lost_mount(f"{mount}/cat/a.png", was_listed=False) is None
    assert lost_mount(f"{mount}/a.png", was_listed=True) is None
    (mount / "other").write_bytes(b"x")
    assert lost_mount(f"{mount}/cat/a.png", was_listed=True) is None


# --- full disks ---


def mounted(folder, size):
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("may not mount a small disk")


@pytest.fixture
def small_disk(tmp_path):
    mounted(tmp_path / "disk", "64k")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_full_disk_ends_the_run_as_resumable_in_its_own_words_and_leaves_no_half_file(small_disk):
    storage = StorageConfig(retry_s=60)
    with pytest.raises(StorageFull) as caught:
        fsys.write_bytes(f"{small_disk}/x.bin", bytes(2**20), storage)
    message = str(caught.value)
    assert f"{small_disk}/x.bin: cannot write: the disk or quota is full" in message
    assert "free space" in message
    assert caught.value.exit_code == 1
    assert os.listdir(small_disk) == []
    fsys.write_bytes(f"{small_disk}/x.bin", bytes(100), storage)


def test_an_index_that_does_not_fit_on_the_disk_is_a_full_disk(small_disk):
    index = faiss.IndexFlatIP(64)
    index.add(np.zeros((4096, 64), np.float32))
    with pytest.raises(StorageFull, match="full"):
        fsys.write_with_callback(
            f"{small_disk}/x.faiss", lambda path: faiss.write_index(index, path), StorageConfig()
        )
    assert os.listdir(small_disk) == []


def test_a_used_up_quota_is_called_so(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageFull, match="the quota is used up"):
        fsys.write_bytes(f"{tmp_path}/x", b"1", StorageConfig())


def test_a_full_bucket_is_not_waited_for(monkeypatch):
    def refuse(*args, **kwargs):
        raise translate_boto_error(refusal(507, "XMinioStorageFull"))

    fs = type("Refusing", (), {"pipe_file": refuse})()
    monkeypatch.setattr(fsys, "filesystem", lambda uri, storage: fs)
    with pytest.raises(StorageFull):
        fsys.write_bytes("s3://bucket/x", b"1", StorageConfig(retry_s=60))
    monkeypatch.setattr(fs, "pipe_file", lambda *a: (_ for _ in ()).throw(PermissionError("no")), raising=False)
    with pytest.raises(StorageError, match="access denied"):
        fsys.write_bytes("s3://bucket/x", b"1", StorageConfig(retry_s=60))
