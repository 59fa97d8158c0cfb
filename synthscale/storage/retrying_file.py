"""A file for reading that is opened again, at the same position, when a read fails with a transient error.

Libraries that take an open file (tarfile, zipfile, Arrow's readers) thereby survive a broken connection.
"""

import io
from collections.abc import Callable
from typing import Any, TypeVar

from synthscale.storage.retries import retrying, storage_error_types

T = TypeVar("T")


class RetryingFile(io.RawIOBase):
    """Binary file for reading; raises StorageUnavailable when a transient error lasts longer than ``retry_s``."""

    def __init__(self, open_file: Callable[[], tuple[Any, str]], uri: str, retry_s: float) -> None:
        """Open the file.

        Args:
            open_file: opens the file; returns it and its etag.
            uri: its location, for messages.
            retry_s: seconds of transient errors after which to give up.

        Raises:
            OSError: the file cannot be opened.
        """
        super().__init__()
        self._open_file, self._uri, self._retry_s = open_file, uri, retry_s
        self._file: Any = None
        self._etag: str | None = None
        self._position = 0
        self._ask(lambda file: None)

    def _ask(self, action: Callable[[Any], T]) -> T:
        """Return the result of ``action``, which gets the open file at the current position."""

        def attempt() -> T:
            if self._file is None:
                self._reopen()
            try:
                return action(self._file)
            except storage_error_types():
                # A handle of a mount or connection that is gone stays broken.
                self._file = None
                raise

        return retrying(attempt, self._uri, "read", self._retry_s)

    def _reopen(self) -> None:
        file, etag = self._open_file()
        if self._etag not in {None, etag}:
            file.close()
            raise OSError("the file has changed while it was read")
        file.seek(self._position)
        self._file, self._etag = file, etag

    def read(self, size: int | None = -1, /) -> bytes:
        """Read ``size`` bytes, fewer only at the end of the file; all that follow if negative or None."""
        data: bytes = self._ask(lambda file: file.read(-1 if size is None else size))
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Read all bytes that follow."""
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer; return the number of bytes read."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a position and return it, in bytes from the start."""
        self._position = self._ask(lambda file: int(file.seek(offset, whence)))
        return self._position

    def tell(self) -> int:
        """Return the current position, in bytes from the start."""
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()
