"""Read, list and atomically write files on local disks and S3; file system errors become StorageError.

Locations are local paths, ``file://`` or ``s3://`` URIs. S3 is accessed through s3fs with the configured endpoint,
region and profile; s3fs finds the credentials, which are never stored here.
"""

import os
import posixpath
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from synthscale.config import StorageConfig
from synthscale.errors import StorageError


@dataclass(frozen=True)
class FileInfo:
    """Path, size and etag of a file.

    Attributes:
        path: absolute local path, or ``BUCKET/KEY`` on S3; without a scheme.
        size_bytes: size of the file.
        etag: S3 ETag without quotes, or `file_etag` of a local file; None if unknown.
    """

    path: str
    size_bytes: int
    etag: str | None


def is_s3(uri: str) -> bool:
    """Return True for an ``s3://`` URI."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """Make a local path absolute; remove ``file://`` and trailing slashes.

    Raises:
        StorageError: the URI has a scheme other than ``file`` and ``s3``.
    """
    if is_s3(uri):
        return uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise StorageError(f"{uri}: unsupported scheme; use a local path or s3://")
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def join(uri: str, *parts: str) -> str:
    """Append path components to a local path or URI."""
    return posixpath.join(uri, *parts)


@lru_cache(maxsize=8)
def _s3(storage: StorageConfig, pid: int) -> Any:
    # The process id is part of the cache key because s3fs clients must not be shared across a fork.
    client = {"region_name": storage.region} if storage.region else {}
    return fsspec.filesystem(
        "s3",
        anon=storage.anon,
        profile=storage.profile,
        endpoint_url=storage.endpoint_url,
        client_kwargs=client,
        skip_instance_cache=True,
        use_listings_cache=False,
    )


def filesystem(uri: str, storage: StorageConfig) -> Any:
    """Return the fsspec file system of ``uri``."""
    return _s3(storage, os.getpid()) if is_s3(uri) else LocalFileSystem()


@contextmanager
def storage_errors(uri: str, doing: str) -> Iterator[None]:
    """Convert file system errors to StorageError: "``uri``: cannot ``doing``: reason"."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{uri}: cannot {doing}: not found") from error
    except PermissionError as error:
        raise StorageError(f"{uri}: cannot {doing}: access denied") from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise StorageError(f"{uri}: cannot {doing}: {' '.join(str(error).split())}") from error


def exists(uri: str, storage: StorageConfig) -> bool:
    """Return True if ``uri`` is a file, a folder or a prefix with objects."""
    with storage_errors(uri, "look up"):
        return bool(filesystem(uri, storage).exists(uri))


def is_folder(uri: str, storage: StorageConfig) -> bool:
    """Return True if ``uri`` is a folder, or a prefix with objects."""
    with storage_errors(uri, "look up"):
        return bool(filesystem(uri, storage).isdir(uri))


def read_bytes(uri: str, storage: StorageConfig) -> bytes:
    """Return the content of a file."""
    with storage_errors(uri, "read"):
        data: bytes = filesystem(uri, storage).cat_file(uri)
        return data


def write_bytes(uri: str, data: bytes, storage: StorageConfig) -> None:
    """Write a file atomically; missing local folders are created."""
    with storage_errors(uri, "write"):
        fs = filesystem(uri, storage)
        if is_s3(uri):
            fs.pipe_file(uri, data)
            return
        with _atomic_path(uri) as temporary, open(temporary, "wb") as file:
            file.write(data)


@contextmanager
def _atomic_path(uri: str) -> Iterator[str]:
    """Yield a temporary path in the same folder; rename it to ``uri`` on success, delete it on failure."""
    os.makedirs(os.path.dirname(uri), exist_ok=True)
    # A killed process leaves the temporary file behind: Arrow datasets ignore names that begin with a dot.
    folder, name = os.path.split(uri)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, uri)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_with_callback(uri: str, write: Callable[[str], None], storage: StorageConfig) -> None:
    """Write a file atomically with a library that can only write to a local path.

    Args:
        uri: location of the file.
        write: called with a temporary local path; writes the file there.
        storage: S3 settings.
    """
    with storage_errors(uri, "write"):
        if is_s3(uri):
            with tempfile.TemporaryDirectory() as folder:
                write(os.path.join(folder, "file"))
                filesystem(uri, storage).put_file(os.path.join(folder, "file"), uri)
            return
        with _atomic_path(uri) as temporary:
            write(temporary)


def remove(uri: str, storage: StorageConfig) -> None:
    """Delete a file, or a folder and its content; do nothing if ``uri`` does not exist."""
    with storage_errors(uri, "remove"):
        fs = filesystem(uri, storage)
        if fs.exists(uri):
            fs.rm(uri, recursive=True)


def list_files(uri: str, storage: StorageConfig) -> list[FileInfo]:
    """Return all files below a folder or prefix, sorted by path; ``etag`` is None for local files."""
    with storage_errors(uri, "list"):
        fs = filesystem(uri, storage)
        files = fs.find(uri, detail=True)
        return [
            FileInfo(path, int(info["size"]), str(info["ETag"]).strip('"') if "ETag" in info else None)
            for path, info in sorted(files.items())
        ]


def stat_or_none(uri: str, storage: StorageConfig) -> FileInfo | None:
    """Return path, size and etag of a file; None if it does not exist."""
    with storage_errors(uri, "look up"):
        try:
            return stat(uri, storage)
        except FileNotFoundError:
            return None


def stat(uri: str, storage: StorageConfig) -> FileInfo:
    """Return path, size and etag of a file; errors of the file system are not converted."""
    info = filesystem(uri, storage).info(uri)
    etag = str(info["ETag"]).strip('"') if is_s3(uri) else file_etag(os.stat(uri))
    return FileInfo(str(info["name"]), int(info["size"]), etag)


def file_etag(state: os.stat_result) -> str:
    """Return the etag of a local file: its modification time in nanoseconds and its size in bytes, both hex."""
    return f"{state.st_mtime_ns:x}-{state.st_size:x}"


def file_names(uri: str, storage: StorageConfig) -> set[str]:
    """Return the names (without folders) of all files below a folder or prefix; empty if it does not exist."""
    if not is_folder(uri, storage):
        return set()
    return {info.path.rsplit("/", 1)[-1] for info in list_files(uri, storage)}


def dataset(uri: str, storage: StorageConfig, **options: Any) -> ds.Dataset:
    """Open a folder of Parquet files as an Arrow dataset, which reads lazily.

    Args:
        uri: the folder or prefix.
        storage: S3 settings.
        **options: further arguments of ``pyarrow.dataset.dataset``.
    """
    with storage_errors(uri, "read"):
        if is_s3(uri):
            options["filesystem"] = PyFileSystem(FSSpecHandler(filesystem(uri, storage)))
        return ds.dataset(uri.removeprefix("s3://"), format="parquet", **options)


def write_table(uri: str, table: pa.Table, storage: StorageConfig) -> None:
    """Write a table as one Parquet file, atomically."""
    sink = pa.BufferOutputStream()
    # Vectors have no repeated values for a dictionary. With BYTE_STREAM_SPLIT they are smaller and decode twice as
    # fast.
    vectors = [field.name for field in table.schema if _is_vector(field.type)]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=[name for name in table.column_names if name not in vectors],
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in vectors} or None,
    )
    write_bytes(uri, sink.getvalue().to_pybytes(), storage)


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type))


def read_table(uri: str, storage: StorageConfig, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or some of its columns.

    Raises:
        StorageError: the file is missing, damaged or not Parquet.
    """
    with storage_errors(uri, "read"):
        try:
            if not is_s3(uri):
                return pq.ParquetFile(uri, memory_map=True).read(columns=columns)
            with filesystem(uri, storage).open(uri, "rb") as file:
                return pq.ParquetFile(file).read(columns=columns)
        except pa.ArrowInvalid as error:
            raise StorageError(f"{uri}: damaged or not a Parquet file: {error}") from error
