"""Bytes by URI from disks, zips and S3; every failure is an ImageFault with its reason."""

import os
import zipfile

import pytest

from synthscale.config import StorageConfig
from synthscale.storage import fetch as fetch_module
from synthscale.storage.fetch import fetch, zip_uri
from synthscale.tables.faults import ImageFault, Reason
from synthscale.tables.layout import StoredFile

LOCAL = StorageConfig()
DATA = bytes(range(256)) * 8


def fault_of(uri, storage=LOCAL):
    with pytest.raises(ImageFault) as caught:
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


def test_a_local_file_gives_its_bytes(tmp_path):
    (tmp_path / "with space, ü and #.png").write_bytes(DATA)
    assert fetch(StoredFile(f"{tmp_path}/with space, ü and #.png"), LOCAL) == DATA


def test_a_missing_file_is_not_found(tmp_path):
    assert fault_of(f"{tmp_path}/none.png") is Reason.NOT_FOUND


def test_a_folder_is_no_image(tmp_path):
    assert fault_of(str(tmp_path)) in {Reason.READ_ERROR, Reason.NOT_FOUND}


def test_a_path_through_a_file_is_a_fault_and_not_a_crash(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    assert fault_of(f"{tmp_path}/f/x.png") in {Reason.READ_ERROR, Reason.NOT_FOUND}


def test_a_name_that_no_file_can_have_is_a_fault_and_not_a_crash(tmp_path):
    assert fault_of(f"{tmp_path}/{'x' * 300}.png") in {Reason.READ_ERROR, Reason.NOT_FOUND}
    assert fault_of(f"{tmp_path}/nul\0byte.png") in {Reason.READ_ERROR, Reason.NOT_FOUND}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_access_denied(tmp_path):
    (tmp_path / "a.png").write_bytes(DATA)
    (tmp_path / "a.png").chmod(0)
    assert fault_of(f"{tmp_path}/a.png") is Reason.ACCESS_DENIED


def test_a_permission_error_is_access_denied(monkeypatch, tmp_path):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "stat", refuse)
    assert fault_of(f"{tmp_path}/a.png") is Reason.ACCESS_DENIED


def test_zip_members_give_their_bytes(archive):
    assert fetch(StoredFile(zip_uri(str(archive), "images/a.png")), LOCAL) == DATA
    assert fetch(StoredFile(zip_uri(str(archive), "images/with::colons and = signs.png")), LOCAL) == DATA[::-1]


def test_a_missing_member_and_a_missing_zip_are_not_found(archive, tmp_path):
    assert fault_of(zip_uri(str(archive), "images/none.png")) is Reason.NOT_FOUND
    assert fault_of(zip_uri(f"{tmp_path}/none.zip", "a.png")) is Reason.NOT_FOUND


def test_a_file_that_is_no_zip_is_corrupt(tmp_path):
    (tmp_path / "no.zip").write_bytes(b"no zip at all" * 50)
    assert fault_of(zip_uri(f"{tmp_path}/no.zip", "a.png")) is Reason.CORRUPT


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_damaged_member_is_corrupt_and_its_neighbours_are_not(tmp_path, method):
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


def test_an_encrypted_member_is_a_fault_and_not_a_crash(archive):
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # the flag of the local header, then that of the central directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(bytes(data))
    assert fault_of(zip_uri(str(archive), "images/a.png")) is Reason.READ_ERROR


def test_a_zip_that_was_replaced_is_opened_again(archive):
    uri = zip_uri(str(archive), "images/a.png")
    assert fetch(StoredFile(uri), LOCAL) == DATA
    other = archive.with_name("b.zip")
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("padding", b"x" * 5000)
        file.writestr("images/a.png", b"another picture")
    os.replace(other, archive)
    assert fetch(StoredFile(uri), LOCAL) == b"another picture"


def test_too_large_a_file_is_refused_before_it_is_read(tmp_path, monkeypatch, archive):
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


def test_an_s3_object_gives_its_bytes(s3, s3_uri):
    assert fetch(StoredFile(s3_uri), StorageConfig(endpoint_url=s3.endpoint_url)) == DATA


def test_the_standard_environment_variables_suffice(s3_uri):
    assert fetch(StoredFile(s3_uri), LOCAL) == DATA


def test_a_missing_object_is_not_found(s3, s3_uri):
    assert fault_of(s3_uri + ".none", StorageConfig(endpoint_url=s3.endpoint_url)) is Reason.NOT_FOUND


def test_a_missing_bucket_is_a_fault_with_a_reason(s3):
    found = fault_of("s3://no-such-bucket-anywhere/x.png", StorageConfig(endpoint_url=s3.endpoint_url))
    assert found in {Reason.NOT_FOUND, Reason.ACCESS_DENIED}


def test_too_large_an_object_is_refused(s3, s3_uri, monkeypatch):
    monkeypatch.setattr(fetch_module, "MAX_BYTES", 100)
    assert fault_of(s3_uri, StorageConfig(endpoint_url=s3.endpoint_url)) is Reason.TOO_LARGE


def test_a_member_of_a_zip_on_s3_gives_its_bytes(s3, archive):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="a.zip", Body=archive.read_bytes())
    uri = zip_uri(f"s3://{bucket}/a.zip", "images/a.png")
    assert fetch(StoredFile(uri), StorageConfig(endpoint_url=s3.endpoint_url)) == DATA
