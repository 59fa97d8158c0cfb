"""Read the bytes of one image by URI: a local file, an S3 object, or a member of an archive on either.

Archive members have fsspec's chained URIs: ``zip://MEMBER::PATH``, and in the same manner
``tar://OFFSET+SIZE/MEMBER::PATH`` (one byte range of the file) and ``parquet://GROUP/ROW/COLUMN::PATH``. Failures
that concern the file are raised as RowFault with a reason: the caller records them for the row, and the run
continues. Transient ones are repeated, and end the run if they last (retries.py).
"""

import os
import threading
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthscale.config import Config, StorageConfig
from synthscale.storage import filesystems as fsys
from synthscale.storage import objects
from synthscale.storage.retries import message_of, retrying, storage_error_types
from synthscale.tables.faults import Reason, RowFault
from synthscale.tables.layout import StoredFile

MAX_BYTES = 512 * 1024 * 1024
"""Maximum size of an image file: 512 MiB. Larger files are refused before they are read."""
_DECODE_LOCK = threading.Lock()


def zip_uri(archive: str, member: str) -> str:
    """Return the URI of a member of a zip file."""
    return f"zip://{member}::{archive}"


def tar_uri(archive: str, member: str, offset: int, size_bytes: int) -> str:
    """Return the URI of a tar member, given the offset of its content in the tar file and its size, in bytes."""
    return f"tar://{offset}+{size_bytes}/{member}::{archive}"


def parquet_uri(path: str, group: int, row: int, column: str) -> str:
    """Return the URI of an image in a Parquet file: row ``row`` of row group ``group``, both from 0."""
    return f"parquet://{group}/{row}/{column}::{path}"


def containing_file(uri: str) -> str:
    """Return the URI of the file that contains the bytes: ``uri`` itself, or the archive of a member."""
    return uri.rpartition("::")[2] if uri.partition("://")[0] in _MEMBER_READERS else uri


def input_folders(config: Config) -> list[str]:
    """Return the local folders that a run's input is known to be in: those of its sets, or that of its table."""
    uris = [config.real, *config.synthetic.values(), config.manifest]
    paths = [fsys.absolute(uri) for uri in uris if uri is not None and not fsys.is_s3(uri)]
    # A set or table may be one file, such as an archive.
    is_file = [os.path.splitext(path)[1] != "" and not os.path.isdir(path) for path in paths]
    return [os.path.dirname(path) if file else path for path, file in zip(paths, is_file, strict=True)]


def fetch(stored: StoredFile, storage: StorageConfig, roots: Sequence[str] = ()) -> bytes:
    """Return the bytes of an image file or archive member.

    Args:
        stored: URI, size and etag from the manifest. For a member, the etag is the archive's and the size is
            ignored.
        storage: S3 settings.
        roots: local folders of the input, which have files while they are mounted. A file is not missing if its
            folder here has disappeared, or another mount that it was listed on.

    Raises:
        RowFault: the bytes cannot be read, or the file has changed since it was listed; ``reason`` says which.
        StorageUnavailable: a transient error lasted for ``storage.retry_s``.
    """
    uri = stored.uri

    def attempt() -> bytes:
        try:
            return _fetch(stored, storage)
        except FileNotFoundError as error:
            if roots:
                fsys.raise_if_lost(error, containing_file(uri), roots, was_listed=stored.etag is not None)
            raise

    try:
        return retrying(attempt, uri, "read", storage.retry_s)
    except (FileNotFoundError, KeyError) as error:
        raise RowFault(Reason.NOT_FOUND, f"{uri}: not found") from error
    except PermissionError as error:
        raise RowFault(Reason.ACCESS_DENIED, f"{uri}: access denied") from error
    except (zipfile.BadZipFile, zlib.error, pa.ArrowInvalid, IndexError) as error:
        raise RowFault(Reason.CORRUPT, f"{uri}: {error}") from error
    except storage_error_types() as error:
        raise RowFault(Reason.READ_ERROR, f"{uri}: {message_of(error)}") from error
    except (RuntimeError, ValueError) as error:
        raise RowFault(Reason.READ_ERROR, f"{uri}: {message_of(error)}") from error


def read_start(uri: str, size_bytes: int, storage: StorageConfig) -> bytes:
    """Return the first ``size_bytes`` bytes, at least 1 and at most the file's size, of a local file or S3 object.

    Raises:
        RowFault: the bytes cannot be read.
        StorageUnavailable: a transient error lasted for ``storage.retry_s``.
    """
    if fsys.is_s3(uri):
        return objects.get_object(StoredFile(uri, None, None), storage, MAX_BYTES, (0, size_bytes))

    def read() -> bytes:
        with open(uri, "rb") as file:
            return file.read(size_bytes)

    try:
        return retrying(read, uri, "read", storage.retry_s)
    except OSError as error:
        raise RowFault(Reason.READ_ERROR, f"{uri}: {message_of(error)}") from error


def _fetch(stored: StoredFile, storage: StorageConfig) -> bytes:
    scheme, separator, rest = stored.uri.partition("://")
    if separator and scheme in _MEMBER_READERS:
        member, _, archive = rest.rpartition("::")
        return _MEMBER_READERS[scheme](member, StoredFile(archive, stored.size_bytes, stored.etag), storage)
    if not fsys.is_s3(stored.uri):
        return _read_file(stored)
    return objects.get_object(stored, storage, MAX_BYTES)


def _read_file(stored: StoredFile) -> bytes:
    _check_size(_check_unchanged(stored))
    with open(stored.uri, "rb") as file:
        return file.read()


def _check_unchanged(stored: StoredFile) -> int:
    """Return the size of a local file in bytes; raise RowFault if its etag differs from the listed one."""
    state = os.stat(stored.uri)
    if stored.etag is not None and fsys.file_etag(state) != stored.etag:
        raise RowFault(Reason.CHANGED, f"{stored.uri}: has changed since it was listed")
    return state.st_size


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise RowFault(Reason.TOO_LARGE, f"{size_bytes:,} bytes, limit {MAX_BYTES:,}")


# Archive members.


def _etag(archive: StoredFile, storage: StorageConfig) -> str:
    """Return an archive's listed etag, or else its current one; check that a local archive is unchanged."""
    if not fsys.is_s3(archive.uri):
        _check_unchanged(archive)
    return archive.etag or str(fsys.stat(archive.uri, storage).etag)


def _open(uri: str, storage: StorageConfig, etag: str) -> Any:
    """Open an archive for reading; raise RowFault if its etag is not ``etag``."""
    file = fsys.open_file(uri, storage)
    if fsys.stat(uri, storage).etag != etag:
        raise RowFault(Reason.CHANGED, f"{uri}: has changed since it was listed")
    return file


def _from_zip(member: str, archive: StoredFile, storage: StorageConfig) -> bytes:
    # The process id is part of the cache key because handles must not be shared across a fork, the etag so that a
    # replaced file is opened again.
    zip_file = _zip(archive.uri, storage, os.getpid(), _etag(archive, storage))
    info = zip_file.getinfo(member)
    _check_size(info.file_size)
    return zip_file.read(info)


@lru_cache(maxsize=4)
def _zip(uri: str, storage: StorageConfig, pid: int, etag: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(_open(uri, storage, etag))


def _from_tar(member: str, archive: StoredFile, storage: StorageConfig) -> bytes:
    span, _, name = member.partition("/")
    offset, size = (int(number) for number in span.split("+"))
    _check_size(size)
    if fsys.is_s3(archive.uri):
        return objects.get_object(archive, storage, MAX_BYTES, (offset, offset + size)) if size else b""
    _check_unchanged(archive)
    with open(archive.uri, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise RowFault(Reason.TRUNCATED, f"{archive.uri}: file ends before the end of member {name}")
    return data


def _from_parquet(member: str, archive: StoredFile, storage: StorageConfig) -> bytes:
    group, row, column = member.split("/", 2)
    uri = archive.uri
    # Threads that need the same row group wait until one of them has decoded it.
    with _DECODE_LOCK:
        images = _row_group(uri, storage, int(group), column, _etag(archive, storage))
    value = images[int(row)].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        raise RowFault(Reason.EMPTY, f"{uri}: row {row} of row group {group} contains no image")
    _check_size(len(data))
    return bytes(data)


@lru_cache(maxsize=2)
def _row_group(uri: str, storage: StorageConfig, group: int, column: str, etag: str) -> pa.ChunkedArray:
    with _open(uri, storage, etag) as file:
        return pq.ParquetFile(file).read_row_group(group, columns=[column]).column(column)


_MEMBER_READERS = {"zip": _from_zip, "tar": _from_tar, "parquet": _from_parquet}
