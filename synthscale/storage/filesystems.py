"""One door to local disks and S3: opening, listing, whole-or-nothing writes; foreign errors become StorageError.

Paths are plain local paths, ``file://`` or ``s3://`` URIs. S3 goes through s3fs with the user's endpoint, region
and profile; credentials come from where s3fs finds them and are never held here.
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
    """One listed object; ``path`` is as the file system names it, without a scheme. A disk's etag: `file_etag`."""

    path: str
    size_bytes: int
    etag: str | None


def is_s3(uri: str) -> bool:
    """Tell whether ``uri`` lies in object storage."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """Return ``uri`` with a local path made absolute, and without ``file://`` and trailing slashes."""
    if is_s3(uri):
        return uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise StorageError(f"{uri}: unknown scheme; use a local path or s3://")
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def join(uri: str, *parts: str) -> str:
    """Append path components to a local path or URI."""
    return posixpath.join(uri, *parts)


@lru_cache(maxsize=8)
def _s3(storage: StorageConfig, pid: int) -> Any:
    # The process id is part of the key: a client must never be shared across a fork.
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
    """Return the fsspec file system that holds ``uri``."""
    return _s3(storage, os.getpid()) if is_s3(uri) else LocalFileSystem()


@contextmanager
def storage_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn the errors of file systems into a StorageError that names ``uri`` and what was tried."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{uri}: cannot {doing}: not found") from error
    except PermissionError as error:
        raise StorageError(f"{uri}: cannot {doing}: access denied") from error
    except (OSError, BotoCoreError, ClientError) as error:
        raise StorageError(f"{uri}: cannot {doing}: {' '.join(str(error).split())}") from error


def exists(uri: str, storage: StorageConfig) -> bool:
    """Tell whether a file or folder stands at ``uri``."""
    with storage_errors(uri, "look"):
        return bool(filesystem(uri, storage).exists(uri))


def is_folder(uri: str, storage: StorageConfig) -> bool:
    """Tell whether ``uri`` is a folder, or a prefix that holds objects."""
    with storage_errors(uri, "look"):
        return bool(filesystem(uri, storage).isdir(uri))


def read_bytes(uri: str, storage: StorageConfig) -> bytes:
    """Read a whole file."""
    with storage_errors(uri, "read"):
        data: bytes = filesystem(uri, storage).cat_file(uri)
        return data


def write_bytes(uri: str, data: bytes, storage: StorageConfig) -> None:
    """Write a whole file so that a reader sees all of it or nothing."""
    with storage_errors(uri, "write"):
        fs = filesystem(uri, storage)
        if is_s3(uri):
            fs.pipe_file(uri, data)
            return
        with _replaced(uri) as temporary, open(temporary, "wb") as file:
            file.write(data)


@contextmanager
def _replaced(uri: str) -> Iterator[str]:
    """Give a path beside a local file, and put what was written there in its place, or leave nothing behind."""
    os.makedirs(os.path.dirname(uri), exist_ok=True)
    # A kill may leave it behind: Arrow's datasets pass over names that begin with a dot.
    folder, name = os.path.split(uri)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, uri)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_with(uri: str, write: Callable[[str], None], storage: StorageConfig) -> None:
    """Let ``write`` fill a local file, and put it at ``uri`` so that a reader sees all of it or nothing."""
    with storage_errors(uri, "write"):
        if is_s3(uri):
            with tempfile.TemporaryDirectory() as folder:
                write(os.path.join(folder, "file"))
                filesystem(uri, storage).put_file(os.path.join(folder, "file"), uri)
            return
        with _replaced(uri) as temporary:
            write(temporary)


def remove(uri: str, storage: StorageConfig) -> None:
    """Remove a file, or a folder with all it holds; nothing there is fine."""
    with storage_errors(uri, "remove"):
        fs = filesystem(uri, storage)
        if fs.exists(uri):
            fs.rm(uri, recursive=True)


def list_files(uri: str, storage: StorageConfig) -> list[FileInfo]:
    """List every file below a folder or prefix, sorted by path."""
    with storage_errors(uri, "list"):
        fs = filesystem(uri, storage)
        found = fs.find(uri, detail=True)
        return [
            FileInfo(path, int(info["size"]), str(info["ETag"]).strip('"') if "ETag" in info else None)
            for path, info in sorted(found.items())
        ]


def file_info(uri: str, storage: StorageConfig) -> FileInfo | None:
    """Return what is known of one file; None where there is none."""
    with storage_errors(uri, "look"):
        try:
            return stat(uri, storage)
        except FileNotFoundError:
            return None


def stat(uri: str, storage: StorageConfig) -> FileInfo:
    """Return what is known of one file; raise what its file system raises."""
    info = filesystem(uri, storage).info(uri)
    etag = str(info["ETag"]).strip('"') if is_s3(uri) else file_etag(os.stat(uri))
    return FileInfo(str(info["name"]), int(info["size"]), etag)


def file_etag(state: os.stat_result) -> str:
    """Return what stands for the etag of a file on a disk: when it was changed, and its size."""
    return f"{state.st_mtime_ns:x}-{state.st_size:x}"


def file_names(uri: str, storage: StorageConfig) -> set[str]:
    """Return the names of the files below a folder or prefix, none where there is none."""
    if not is_folder(uri, storage):
        return set()
    return {info.path.rsplit("/", 1)[-1] for info in list_files(uri, storage)}


def dataset(uri: str, storage: StorageConfig, **options: Any) -> ds.Dataset:
    """Return a folder of Parquet files as an Arrow dataset, read lazily."""
    with storage_errors(uri, "read"):
        if is_s3(uri):
            options["filesystem"] = PyFileSystem(FSSpecHandler(filesystem(uri, storage)))
        return ds.dataset(uri.removeprefix("s3://"), format="parquet", **options)


def write_table(uri: str, table: pa.Table, storage: StorageConfig) -> None:
    """Write one Parquet file, whole or not at all."""
    sink = pa.BufferOutputStream()
    # Vectors have no repeated values for a dictionary; by byte planes they are smaller and decode twice as fast.
    plain = [field.name for field in table.schema if _is_vector(field.type)]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=[name for name in table.column_names if name not in plain],
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in plain} or None,
    )
    write_bytes(uri, sink.getvalue().to_pybytes(), storage)


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type))


def read_table(uri: str, storage: StorageConfig, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file; raise StorageError when it is missing or no Parquet."""
    with storage_errors(uri, "read"):
        try:
            if not is_s3(uri):
                return pq.ParquetFile(uri, memory_map=True).read(columns=columns)
            with filesystem(uri, storage).open(uri, "rb") as file:
                return pq.ParquetFile(file).read(columns=columns)
        except pa.ArrowInvalid as error:
            raise StorageError(f"{uri}: damaged or not a Parquet file: {error}") from error
