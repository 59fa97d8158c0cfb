"""Bytes of one image by its URI: a local file, an S3 object, or what an archive on either holds.

A member of an archive is written as fsspec does, ``zip://MEMBER::PATH``; likewise
``tar://OFFSET+SIZE/MEMBER::PATH``, one range of the file, and ``parquet://GROUP/ROW/COLUMN::PATH``. Failures come
as ImageFault with a reason, because a row's failure is data; nothing here stops a run.
"""

import os
import threading
import zipfile
import zlib
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError

from synthscale.config import StorageConfig
from synthscale.storage import filesystems as fsys
from synthscale.storage import objects
from synthscale.tables.faults import ImageFault, Reason
from synthscale.tables.layout import StoredFile

MAX_BYTES = 512 * 1024 * 1024
"""Larger files are refused before they are read."""
_DECODING = threading.Lock()


def zip_uri(archive: str, member: str) -> str:
    """Return the URI of a member of a zip file."""
    return f"zip://{member}::{archive}"


def tar_uri(archive: str, member: str, offset: int, size_bytes: int) -> str:
    """Return the URI of a member of a tar file, whose bytes lie at an offset."""
    return f"tar://{offset}+{size_bytes}/{member}::{archive}"


def parquet_uri(path: str, group: int, row: int, column: str) -> str:
    """Return the URI of an image in a row of a row group of a Parquet file."""
    return f"parquet://{group}/{row}/{column}::{path}"


def file_of(uri: str) -> str:
    """Return the file or object that a URI's bytes are in: itself, or the archive that it is a member of."""
    return uri.rpartition("::")[2] if uri.partition("://")[0] in _MEMBERS else uri


def fetch(stored: StoredFile, storage: StorageConfig) -> bytes:
    """Return the bytes of a file; raise ImageFault with the reason when they cannot be had, or are other ones."""
    uri = stored.uri
    try:
        scheme, separator, rest = uri.partition("://")
        if separator and scheme in _MEMBERS:
            member, _, archive = rest.rpartition("::")
            return _MEMBERS[scheme](member, StoredFile(archive, stored.size_bytes, stored.etag), storage)
        if not fsys.is_s3(uri):
            return _read_file(stored)
        return objects.get(stored, storage, MAX_BYTES)
    except (FileNotFoundError, KeyError) as error:
        raise ImageFault(Reason.NOT_FOUND, f"{uri}: not found") from error
    except PermissionError as error:
        raise ImageFault(Reason.ACCESS_DENIED, f"{uri}: access denied") from error
    except (zipfile.BadZipFile, zlib.error, pa.ArrowInvalid, IndexError) as error:
        raise ImageFault(Reason.CORRUPT, f"{uri}: {error}") from error
    except (OSError, BotoCoreError, ClientError, RuntimeError, ValueError) as error:
        raise ImageFault(Reason.READ_ERROR, f"{uri}: {' '.join(str(error).split())}") from error


def _read_file(stored: StoredFile) -> bytes:
    _check_size(_check_unchanged(stored))
    with open(stored.uri, "rb") as file:
        return file.read()


def _check_unchanged(stored: StoredFile) -> int:
    """Return a local file's size; raise ImageFault where it is another file than was listed."""
    state = os.stat(stored.uri)
    if stored.etag is not None and fsys.file_etag(state) != stored.etag:
        raise ImageFault(Reason.CHANGED, f"{stored.uri}: has changed since it was listed")
    return state.st_size


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise ImageFault(Reason.TOO_LARGE, f"{size_bytes} bytes, limit {MAX_BYTES}")


# Members of archives.


def _etag(archive: StoredFile, storage: StorageConfig) -> str:
    """Return the etag that an archive is known by; one on a disk is looked at again."""
    if not fsys.is_s3(archive.uri):
        _check_unchanged(archive)
    return archive.etag or str(fsys.stat(archive.uri, storage).etag)


def _open(uri: str, storage: StorageConfig, etag: str) -> Any:
    file = fsys.filesystem(uri, storage).open(uri, "rb")
    if fsys.stat(uri, storage).etag != etag:
        raise ImageFault(Reason.CHANGED, f"{uri}: has changed since it was listed")
    return file


def _from_zip(member: str, archive: StoredFile, storage: StorageConfig) -> bytes:
    # Handles must not be shared across a fork; a file that was replaced has another etag, and is opened again.
    opened = _zip(archive.uri, storage, os.getpid(), _etag(archive, storage))
    info = opened.getinfo(member)
    _check_size(info.file_size)
    return opened.read(info)


@lru_cache(maxsize=4)
def _zip(uri: str, storage: StorageConfig, pid: int, etag: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(_open(uri, storage, etag))


def _from_tar(member: str, archive: StoredFile, storage: StorageConfig) -> bytes:
    place, _, name = member.partition("/")
    offset, size = (int(number) for number in place.split("+"))
    _check_size(size)
    if fsys.is_s3(archive.uri):
        return objects.get(archive, storage, MAX_BYTES, (offset, offset + size)) if size else b""
    _check_unchanged(archive)
    with open(archive.uri, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise ImageFault(Reason.TRUNCATED, f"{archive.uri}: ends within {name}")
    return data


def _from_parquet(member: str, archive: StoredFile, storage: StorageConfig) -> bytes:
    group, row, column = member.split("/", 2)
    uri = archive.uri
    # One thread decodes the row group that the others wait for.
    with _DECODING:
        images = _row_group(uri, storage, int(group), column, _etag(archive, storage))
    value = images[int(row)].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        raise ImageFault(Reason.EMPTY, f"{uri}: row {row} of row group {group} holds no image")
    _check_size(len(data))
    return bytes(data)


@lru_cache(maxsize=2)
def _row_group(uri: str, storage: StorageConfig, group: int, column: str, etag: str) -> pa.ChunkedArray:
    with _open(uri, storage, etag) as file:
        return pq.ParquetFile(file).read_row_group(group, columns=[column]).column(column)


_MEMBERS = {"zip": _from_zip, "tar": _from_tar, "parquet": _from_parquet}
