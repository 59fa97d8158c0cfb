"""Read, list and atomically write files on local disks and S3; file system errors become StorageError.

Locations are local paths, ``file://`` or ``s3://`` URIs. S3 is accessed through s3fs with the configured endpoint,
region and profile; s3fs finds the credentials, which are never stored here. Every function repeats its request
after transient errors for ``storage.retry_s`` seconds (retries.py).
"""

import errno
import os
import secrets
import stat as stat_bits
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile
from pyarrow.fs import FSSpecHandler, PyFileSystem

from synthscale.config import StorageConfig
from synthscale.errors import StorageError
from synthscale.storage.retries import (
    full_error,
    is_full,
    is_transient,
    local_mode,
    lost_mount,
    message_of,
    retrying,
    storage_error_types,
    unavailable,
)
from synthscale.storage.retrying_file import RetryingFile
from synthscale.storage.s3_client import client_options, configure_session, s3_client

T = TypeVar("T")


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
    """Append path components to a local path or URI; a leading slash of a component is part of an S3 key."""
    return "/".join([uri.removesuffix("/"), *parts])


@lru_cache(maxsize=8)
def _s3(storage: StorageConfig, pid: int) -> Any:
    # The process id is part of the cache key because s3fs clients must not be shared across a fork.
    import aiobotocore.session
    from s3fs import S3FileSystem

    class Picklable(S3FileSystem):  # type: ignore[misc]
        """Travels as its settings: a session cannot be pickled."""

        def __reduce__(self) -> Any:
            return _s3_of_process, (storage,)

    # Its client is not used here: an unusable setting is reported in the same words by both.
    s3_client(storage, pid)
    session = configure_session(aiobotocore.session.AioSession(profile=storage.profile))
    fs = Picklable(
        anon=storage.anon,
        session=session,
        requester_pays=storage.requester_pays,
        client_kwargs=client_options(session, storage),
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 1}},
    )
    # `retrying` repeats requests. One more attempt here keeps the parts of a large upload that have arrived.
    fs.retries = 2
    return fs


def _s3_of_process(storage: StorageConfig) -> Any:
    return _s3(storage, os.getpid())


def filesystem(uri: str, storage: StorageConfig) -> Any:
    """Return the fsspec file system of ``uri``."""
    return _s3_of_process(storage) if is_s3(uri) else LocalFileSystem()


@contextmanager
def storage_errors(uri: str, doing: str) -> Iterator[None]:
    """Convert file system errors to StorageError: "``uri``: cannot ``doing``: reason".

    A transient error becomes StorageUnavailable, a full disk or quota StorageFull.
    """
    try:
        yield
    except storage_error_types() as error:
        if is_full(error):
            raise full_error(error, uri) from error
        if is_transient(error):
            raise unavailable(error, uri, doing) from error
        reason = message_of(error)
        if isinstance(error, FileNotFoundError):
            reason = "not found"
        elif isinstance(error, PermissionError):
            reason = "access denied"
        raise StorageError(f"{uri}: cannot {doing}: {reason}") from error


def attempt(uri: str, doing: str, storage: StorageConfig, action: Callable[[], T], root: str | None = None) -> T:
    """Return ``action()``, repeated after transient errors, with errors converted as `storage_errors` does.

    Args:
        uri: location of the file or folder, for messages.
        doing: verb for messages.
        storage: its ``retry_s``.
        action: may be called any number of times.
        root: local folder that is known to have files. If it is gone, ``uri`` is not missing but its mount is.
    """

    def with_root() -> T:
        try:
            return action()
        except FileNotFoundError as error:
            raise_if_lost(error, uri, () if root is None else (root,))
            raise

    with storage_errors(uri, doing):
        return retrying(with_root, uri, doing, storage.retry_s)


def raise_if_lost(error: FileNotFoundError, path: str, roots: Sequence[str], *, was_listed: bool = False) -> None:
    """Raise a transient OSError if a local file was not found because its mount is gone (`retries.lost_mount`)."""
    folder = None if is_s3(path) else lost_mount(path, roots, was_listed=was_listed)
    if folder is not None:
        raise OSError(errno.ENODEV, f"{folder} has disappeared; is its disk or share still mounted?") from error


def exists(uri: str, storage: StorageConfig) -> bool:
    """Return True if ``uri`` is a file, a folder or a prefix with objects."""

    def action() -> bool:
        return bool(filesystem(uri, storage).exists(uri)) if is_s3(uri) else local_mode(uri) is not None

    return attempt(uri, "look up", storage, action)


def is_folder(uri: str, storage: StorageConfig) -> bool:
    """Return True if ``uri`` is a folder, or a prefix with objects."""

    def action() -> bool:
        return bool(filesystem(uri, storage).isdir(uri)) if is_s3(uri) else local_mode(uri) == stat_bits.S_IFDIR

    return attempt(uri, "look up", storage, action)


def read_bytes(uri: str, storage: StorageConfig) -> bytes:
    """Return the content of a file."""
    data: bytes = attempt(uri, "read", storage, lambda: filesystem(uri, storage).cat_file(uri))
    return data


def open_file(uri: str, storage: StorageConfig) -> RetryingFile:
    """Open a file for reading; transient errors of reads are repeated too.

    Raises:
        OSError: a permanent error; `storage_errors` converts it.
        StorageUnavailable: a transient error lasted for ``storage.retry_s``.
    """

    def opened() -> tuple[Any, str]:
        if is_s3(uri):
            file = filesystem(uri, storage).open(uri, "rb")
            return file, str(file.details["ETag"])
        local = open(uri, "rb")  # noqa: SIM115 (RetryingFile closes it)
        return local, file_etag(os.fstat(local.fileno()))

    return RetryingFile(opened, uri, storage.retry_s)


def version(uri: str, storage: StorageConfig) -> str:
    """Return fsspec's ``ukey`` of a file, which changes with its content."""
    return attempt(uri, "look up", storage, lambda: str(filesystem(uri, storage).ukey(uri)))


def write_bytes(uri: str, data: bytes, storage: StorageConfig) -> None:
    """Write a file atomically; missing local folders are created."""

    def action() -> None:
        if is_s3(uri):
            filesystem(uri, storage).pipe_file(uri, data)
            return
        with _atomic_path(uri) as temporary, open(temporary, "wb") as file:
            file.write(data)

    attempt(uri, "write", storage, action)


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
        try:
            if is_s3(uri):
                with tempfile.TemporaryDirectory() as folder:
                    path = os.path.join(folder, "file")
                    write(path)
                    put = partial(filesystem(uri, storage).put_file, path, uri)
                    retrying(put, uri, "write", storage.retry_s)
                return
            with _atomic_path(uri) as temporary:
                write(temporary)
        except RuntimeError as error:
            # FAISS reports a full disk so.
            if is_full(error):
                raise full_error(error, uri) from error
            raise


def remove(uri: str, storage: StorageConfig) -> None:
    """Delete a file, or a folder and its content; do nothing if ``uri`` does not exist."""

    def action() -> None:
        fs = filesystem(uri, storage)
        if fs.exists(uri):
            fs.rm(uri, recursive=True)

    attempt(uri, "remove", storage, action)


def list_files(uri: str, storage: StorageConfig) -> list[FileInfo]:
    """Return all files below a folder or prefix, sorted by path; ``etag`` is None for local files."""
    files = attempt(uri, "list", storage, lambda: filesystem(uri, storage).find(uri, detail=True))
    return [
        FileInfo(path, int(info["size"]), str(info["ETag"]).strip('"') if "ETag" in info else None)
        for path, info in sorted(files.items())
    ]


def stat_or_none(uri: str, storage: StorageConfig) -> FileInfo | None:
    """Return path, size and etag of a file; None if it does not exist."""

    def action() -> FileInfo | None:
        try:
            return stat(uri, storage)
        except FileNotFoundError:
            return None

    return attempt(uri, "look up", storage, action)


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
    if is_s3(uri):
        options["filesystem"] = PyFileSystem(_RetryingHandler(filesystem(uri, storage), storage))
    path = uri.removeprefix("s3://")
    return attempt(uri, "read", storage, lambda: ds.dataset(path, format="parquet", **options))


class _RetryingHandler(FSSpecHandler):  # type: ignore[misc]
    """Arrow's adapter of s3fs, with files that repeat reads after transient errors."""

    def __init__(self, fs: Any, storage: StorageConfig) -> None:
        super().__init__(fs)
        self._storage = storage

    def open_input_file(self, path: str) -> Any:
        return PythonFile(open_file(f"s3://{path}", self._storage), mode="r")


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


def read_table(
    uri: str, storage: StorageConfig, columns: list[str] | None = None, root: str | None = None
) -> pa.Table:
    """Read one Parquet file, or some of its columns.

    Args:
        uri: location of the file.
        storage: S3 settings.
        columns: names of the columns; None reads all.
        root: as in `attempt`.

    Raises:
        StorageError: the file is missing, damaged or not Parquet.
    """

    def action() -> pa.Table:
        if not is_s3(uri):
            return pq.ParquetFile(uri, memory_map=True).read(columns=columns)
        with open_file(uri, storage) as file:
            return pq.ParquetFile(file).read(columns=columns)

    try:
        return attempt(uri, "read", storage, action, root)
    except pa.ArrowInvalid as error:
        raise StorageError(f"{uri}: damaged or not a Parquet file: {error}") from error
