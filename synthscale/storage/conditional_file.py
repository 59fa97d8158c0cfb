"""A small file, local or on S3, that several processes change by compare-and-swap, and the clock of its storage.

On S3 these are conditional PUTs: ``If-None-Match: *`` creates, ``If-Match: ETAG`` replaces. A local file is
created with O_EXCL and replaced by a rename under ``flock``. The lock is on the file itself, not on a second one:
whoever gets it checks that the name still belongs to the locked file. Where the file system has no locks (some
network mounts), creation is still exclusive, but of two processes that replace the file at the same moment the
later one wins.
"""

import errno
import fcntl
import os
import posixpath
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from synthscale.config import StorageConfig
from synthscale.errors import StorageError
from synthscale.storage import filesystems as fsys
from synthscale.storage.objects import bucket_client, is_plain_key, listing_errors
from synthscale.storage.retries import status_and_code

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Error numbers of ``flock`` on a file system without locks."""
_LOCK_ATTEMPTS, _LOCK_PAUSE_S = 100, 0.05
"""Attempts to lock a local file. Locks last a millisecond, unless their process is paused meanwhile."""


@dataclass(frozen=True)
class Version:
    """Content of the file at one moment.

    Attributes:
        data: the content.
        etag: S3's ETag; empty for a local file, whose versions are told apart by their content.
        modified_s: when it was written, by the storage's clock, in seconds since 1970; 0 if not asked for.
    """

    data: bytes
    etag: str = ""
    modified_s: float = 0.0


class LocalFile:
    """A file on a local disk or network mount; each method is one attempt, with the system's own errors."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def errors(self, doing: str) -> AbstractContextManager[None]:
        """Convert errors to StorageError: "cannot ``doing``"."""
        return fsys.storage_errors(self.uri, doing)

    def read(self) -> Version | None:
        """Return the current version; None if there is no file."""
        try:
            with open(self.uri, "rb") as file:
                return Version(file.read(), modified_s=os.fstat(file.fileno()).st_mtime)
        except FileNotFoundError:
            return None

    def create(self, data: bytes) -> Version | None:
        """Create the file, and missing folders; return None if there is one already."""
        os.makedirs(os.path.dirname(self.uri), exist_ok=True)
        try:
            file = open(self.uri, "xb")  # noqa: SIM115 (closed below)
        except FileExistsError:
            return None
        try:
            with file:
                file.write(data)
        except OSError:
            # On a full disk it is empty, and would look like somebody else's.
            with suppress(OSError):
                os.unlink(self.uri)
            raise
        return Version(data)

    def replace(self, data: bytes, seen: Version) -> Version | None:
        """Replace the version ``seen``; return None if it is not the current one."""
        with self._locked() as current:
            if current != seen.data:
                return None
            temporary = _temporary(self.uri)
            try:
                with open(temporary, "xb") as file:
                    file.write(data)
                os.replace(temporary, self.uri)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            return Version(data)

    def remove(self, seen: Version) -> None:
        """Delete the file if its current version is ``seen``."""
        with self._locked() as current:
            if current == seen.data:
                os.unlink(self.uri)

    def now_s(self) -> float:
        """Return the time by the file system's clock: that of a new file next to this one."""
        with tempfile.TemporaryFile(dir=os.path.dirname(self.uri)) as probe:
            return os.fstat(probe.fileno()).st_mtime

    @contextmanager
    def _locked(self) -> Iterator[bytes | None]:
        """Lock the file and yield its content; None if there is no file."""
        while (file := _opened(self.uri)) is not None:
            with file:
                _lock(file.fileno())
                # Another process may have replaced or deleted the file before this one got the lock.
                if _has_name(file.fileno(), self.uri):
                    yield file.read()
                    return
        yield None


def _temporary(path: str) -> str:
    """Return the path of a new file in the same folder, with a name that a run directory knows as unfinished."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")


def _opened(path: str) -> BinaryIO | None:
    """Open a file for reading and writing, which locks on NFS need; None if it does not exist."""
    try:
        return open(path, "rb+")
    except FileNotFoundError:
        return None


def _lock(descriptor: int) -> None:
    """Lock a file until it is closed; raise BlockingIOError if another process keeps it locked for 5 s."""
    for attempt in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == _LOCK_ATTEMPTS - 1:
                raise
            time.sleep(_LOCK_PAUSE_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return


def _has_name(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


class S3Object:
    """An object on S3; each method is one attempt, with obstore's own errors."""

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self.uri, self._storage = uri, storage
        self._bucket, _, self._key = uri.removeprefix("s3://").partition("/")
        if not is_plain_key(self._key):
            raise StorageError(
                f"{uri}: cannot be written: empty, '.' and '..' parts of a prefix and control characters are not "
                "supported here; choose another --output"
            )

    def errors(self, doing: str) -> AbstractContextManager[None]:
        """Convert errors to StorageError: "cannot ``doing``"."""
        return listing_errors(self.uri, doing)

    @property
    def _store(self) -> S3Store:
        return bucket_client(self._bucket, self._storage)

    def read(self) -> Version | None:
        """Return the current version; None if there is no object."""
        try:
            found = self._store.get(self._key)
        except FileNotFoundError:
            return None
        modified_s = found.meta["last_modified"].timestamp()
        return Version(found.bytes().to_bytes(), found.meta["e_tag"] or "", modified_s)

    def create(self, data: bytes) -> Version | None:
        """Create the object; return None if there is one already."""
        return self._put(data, "create")

    def replace(self, data: bytes, seen: Version) -> Version | None:
        """Replace the version ``seen``; return None if it is not the current one."""
        return self._put(data, {"e_tag": seen.etag})

    def remove(self, seen: Version) -> None:
        """Delete the object if its current version is ``seen``.

        S3 cannot do both in one request: who replaced the object just before, as the only one who may, is safe.
        """
        current = self.read()
        if current is not None and current.etag == seen.etag:
            self._store.delete(self._key)

    def now_s(self) -> float:
        """Return the time by the server's clock: that of a new object next to this one."""
        key = _temporary(self._key)
        self._store.put(key, b"")
        try:
            return float(self._store.head(key)["last_modified"].timestamp())
        finally:
            self._store.delete(key)

    def _put(self, data: bytes, mode: Any) -> Version | None:
        try:
            return Version(data, self._store.put(self._key, data, mode=mode)["e_tag"] or "")
        except (AlreadyExistsError, PreconditionError):
            return None
        except BaseError as error:
            # S3's answer when another request for the object arrives at the same moment.
            if status_and_code(error)[0] == 409:
                return None
            raise


def conditional_file(uri: str, storage: StorageConfig) -> LocalFile | S3Object:
    """Return the file at ``uri``, which need not exist."""
    return S3Object(uri, storage) if fsys.is_s3(uri) else LocalFile(uri)
