"""`fetch` reads local files, zip members and S3 objects; every failure is an RowFault with a reason."""

import os
import zipfile

import pytest

from synthscale.config import StorageConfig
from synthscale.storage import fetch as fetch_module
from synthscale.storage.fetch import fetch, zip_uri
from synthscale.tables.faults import Reason, RowFault
from synthscale.tables.layout import StoredFile

LOCAL = StorageConfig()
DATA = bytes(range(256)) * 8


def fault_of(uri, storage=LOCAL):
    with pytest.raises(RowFault) as caught:
        fetch(StoredFile(uri), storage)
    assert caught.value.detail
    return caught.value.reason


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images/a.png", DATA)
        file.writestr("images/with::colons and = signs.png", DATA[::-1])
    return path


def test_a_local_file_is_read(tmp_path):
    (tmp_path / "with space, ü and #.png").write_bytes(DATA)
    assert fetch(StoredFile(f"{tmp_path}/with space, ü and #.png"), LOCAL) == DATA


def test_a_missing_file_is_not_found(tmp_path):
    assert fault_of(f"{tmp_path}/none.png") is Reason.NOT_FOUND


def test_a_folder_is_a_fault(tmp_path):
    assert fault_of(str(tmp_path)) in {Reason.READ_ERROR, Reason.NOT_FOUND}


def test_a_path_below_a_file_is_a_fault(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    assert fault_of(f"{tmp_path}/f/x.png") in {Reason.READ_ERROR, Reason.NOT_FOUND}


def test_an_impossible_file_name_is_a_fault(tmp_path):
    assert fault_of(f"{tmp_path}/{'x' * 300}.png") in {Reason.READ_ERROR, Reason.NOT_FOUND}
    assert fault_of(f"{tmp_path}/nul\0byte.png") in {Reason.READ_ERROR, Reason.NOT_FOUND}


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_an_unreadable_file_is_access_denied(tmp_path):
    (tmp_path / "a.png").write_bytes(DATA)
    (tmp_path / "a.png").chmod(0)
    assert fault_of(f"{tmp_path}/a.png") is Reason.ACCESS_DENIED


def test_a_permission_error_is_access_denied(monkeypatch, tmp_path):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refuse)
    assert fault_of(f"{tmp_path}/a.png") is Reason.ACCESS_DENIED


def test_zip_members_are_read(archive):
    assert fetch(StoredFile(zip_uri(str(archive), "images/a.png")), LOCAL) == DATA
    assert fetch(StoredFile(zip_uri(str(archive), "images/with::colons and = signs.png")), LOCAL) == DATA[::-1]


def test_a_missing_member_and_a_missing_zip_are_not_found(archive, tmp_path):
    assert fault_of(zip_uri(str(archive), "images/none.png")) is Reason.NOT_FOUND
    assert fault_of(zip_uri(f"{tmp_path}/none.zip", "a.png")) is Reason.NOT_FOUND


def test_a_file_that_is_not_a_zip_is_corrupt(tmp_path):
    (tmp_path / "no.zip").write_bytes(b"no zip at all" * 50)
    assert fault_of(zip_uri(f"{tmp_path}/no.zip", "a.png")) is Reason.CORRUPT


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_damaged_member_is_corrupt_and_other_members_are_read(tmp_path, method):
    path = tmp_path / "a.zip"
    noise = os.urandom(4000)
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("bad.png", noise)
        file.writestr("good.png", DATA)
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(bytes(data))
    assert fault_of(zip_uri(str(path), "bad.png")) is Reason.CORRUPT
    assert fetch(StoredFile(zip_uri(str(path), "good.png")), LOCAL) == DATA


def test_an_encrypted_member_is_a_fault(archive):
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # encryption flag in the local header, then in the central directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(bytes(data))
    assert fault_of(zip_uri(str(archive), "images/a.png")) is Reason.READ_ERROR


def test_a_replaced_zip_is_reopened(archive):
    uri = zip_uri(str(archive), "images/a.png")
    assert fetch(StoredFile(uri), LOCAL) == DATA
    other = archive.with_name("b.zip")
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("padding", b"x" * 5000)
        file.writestr("images/a.png", b"another picture")
    os.replace(other, archive)
    assert fetch(StoredFile(uri), LOCAL) == b"another picture"


def test_a_file_over_the_size_limit_is_refused(tmp_path, monkeypatch, archive):
    monkeypatch.setattr(fetch_module, "MAX_BYTES", 100)
    (tmp_path / "big.png").write_bytes(DATA)
    (tmp_path / "small.png").write_bytes(DATA[:100])
    assert fault_of(f"{tmp_path}/big.png") is Reason.TOO_LARGE
    assert fault_of(zip_uri(str(archive), "images/a.png")) is Reason.TOO_LARGE
    assert fetch(StoredFile(f"{tmp_path}/small.png"), LOCAL) == DATA[:100]


@pytest.fixture
def s3_uri(s3):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="a b/ü.png", Body=DATA)
    return f"s3://{bucket}/a b/ü.png"


def test_an_s3_object_is_read(s3, s3_uri):
    assert fetch(StoredFile(s3_uri), StorageConfig(endpoint_url=s3.endpoint_url)) == DATA


def test_aws_environment_variables_are_used_without_storage_settings(s3_uri):
    assert fetch(StoredFile(s3_uri), LOCAL) == DATA


def test_a_missing_object_is_not_found(s3, s3_uri):
    assert fault_of(s3_uri + ".none", StorageConfig(endpoint_url=s3.endpoint_url)) is Reason.NOT_FOUND


def test_a_missing_bucket_is_a_fault_with_a_reason(s3):
    reason = fault_of("s3://no-such-bucket-anywhere/x.png", StorageConfig(endpoint_url=s3.endpoint_url))
    assert reason in {Reason.NOT_FOUND, Reason.ACCESS_DENIED}


def test_an_object_over_the_size_limit_is_refused(s3, s3_uri, monkeypatch):
    monkeypatch.setattr(fetch_module, "MAX_BYTES", 100)
    assert fault_of(s3_uri, StorageConfig(endpoint_url=s3.endpoint_url)) is Reason.TOO_LARGE


def test_a_member_of_a_zip_on_s3_is_read(s3, archive):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="a.zip", Body=archive.read_bytes())
    uri = zip_uri(f"s3://{bucket}/a.zip", "images/a.png")
    assert fetch(StoredFile(uri), StorageConfig(endpoint_url=s3.endpoint_url)) == DATA
