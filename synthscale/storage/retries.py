"""Tell transient storage errors from permanent ones, and repeat what fails with a transient one.

An error is one of three kinds, for every reader and writer of the package:

- *transient*: the same request may succeed later, whatever the file is like: resets, time-outs, HTTP 429 and 5xx,
  stale or vanished mounts. `retrying` repeats the request for ``storage.retry_s`` seconds and then raises
  StorageUnavailable, which ends the run as resumable. It is never a failure of a row.
- *full*: a disk or quota is full. StorageFull ends the run at once; it too can be resumed.
- *permanent*: all others, such as not found, access denied, damaged. They concern one file; for an image they are
  recorded in ``failures/``.
"""

import errno
import logging
import os
import random
import re
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from botocore import exceptions as botocore_errors
from obstore.exceptions import BaseError, GenericError

from synthscale.errors import StorageFull, StorageUnavailable

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.2, 10.0
"""Pauses between attempts in seconds: retry i waits a random time below ``_FIRST_PAUSE_S * 2**i``, capped.

Random, so that the requests of many workers do not return to a struggling server at the same moment.
"""
_ERRNOS = {
    getattr(errno, name)
    for name in (
        # A network file system or FUSE mount whose server or process is gone.
        *("ESTALE", "EIO", "ENOTCONN", "EREMOTEIO", "ENODEV", "ENXIO", "ENOLINK", "ESHUTDOWN", "ENOMEDIUM"),
        *("ETIMEDOUT", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EPIPE", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EAGAIN", "EBUSY", "EINTR", "EMFILE", "ENFILE", "ENOMEM"),
    )
    if hasattr(errno, name)
}
"""Error numbers that say something about a connection, mount or machine, and nothing about the file."""
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_FULL_CODES = {
    "QuotaExceeded",
    "QuotaExceededException",
    "StorageFull",
    "XMinioStorageFull",
    "InsufficientStorage",
}
THROTTLED_CODES = {"SlowDown", "ServiceUnavailable", "TooManyRequests", "RequestLimitExceeded"}
"""S3 error codes of a server that asks for fewer requests."""
_TRANSIENT_CODES = THROTTLED_CODES | {"InternalError", "RequestTimeout", "OperationAborted", "Throttling"}
_TRANSIENT_BOTOCORE_ERRORS = (
    botocore_errors.ConnectionError,
    botocore_errors.HTTPClientError,
    botocore_errors.IncompleteReadError,
    botocore_errors.ResponseStreamingError,
    botocore_errors.MetadataRetrievalError,
    botocore_errors.CredentialRetrievalError,
)

T = TypeVar("T")


def storage_error_types() -> tuple[type[Exception], ...]:
    """Return the exceptions with which the libraries of storage report that a request failed."""
    return (OSError, botocore_errors.BotoCoreError, botocore_errors.ClientError, BaseError, *_s3fs_error_types())


def _s3fs_error_types() -> tuple[type[Exception], ...]:
    """Return the errors of broken connections that s3fs passes on; none before s3fs has loaded these modules."""
    names = (("aiohttp", "ClientError"), ("botocore.parsers", "ResponseParserError"))
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


def is_transient(error: BaseException | None) -> bool:
    """Return True if the request that raised ``error`` may succeed later without anybody changing the file."""
    if error is None or is_full(error):
        return False
    if (response := _s3_response(error)) is not None:
        status, code = response
        return code in _TRANSIENT_CODES or _is_transient_status(status)
    if isinstance(error, BaseError):
        return _is_transient_obstore(error)
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    if isinstance(error, (TimeoutError, ConnectionError, socket.gaierror, *_s3fs_error_types())):
        return True
    # Some of botocore's time-outs are OSErrors without a number.
    if isinstance(error, _TRANSIENT_BOTOCORE_ERRORS):
        return True
    return isinstance(error, OSError) and error.errno in _ERRNOS


def _is_transient_status(status: int) -> bool:
    # 501 and 505 say that the server will never do this.
    return status in {408, 429} or (500 <= status < 600 and status not in {501, 505})


def _is_transient_obstore(error: BaseError) -> bool:
    message = message_of(error)
    if "credential provider: ConnectionError" in message:
        return True
    if not isinstance(error, GenericError):
        return False
    status, code = status_and_code(error)
    if status or code:
        return code in _TRANSIENT_CODES or _is_transient_status(status)
    # obstore has no types for these: a reset or time-out before, or within, the body.
    return any(words in message for words in ("HTTP error", "response body", "timed out"))


def message_of(error: BaseException) -> str:
    """Return an error's message on one line, without error numbers and obstore's debug representation."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(text).partition("Debug source")[0].split()) or type(error).__name__


def status_and_code(error: BaseException) -> tuple[int, str]:
    """Return the HTTP status and S3 error code of an obstore or botocore error; 0 and "" if it has none."""
    if (response := _s3_response(error)) is not None:
        return response
    message = message_of(error)
    status = re.search(r"status code: (\d{3})", message)
    code = re.search(r"<Code>(\w+)</Code>", message)
    return int(status[1]) if status else 0, code[1] if code else ""


def _s3_response(error: BaseException) -> tuple[int, str] | None:
    """Return the HTTP status and S3 error code of a botocore error, also one that s3fs made an OSError of."""
    cause = error.__cause__ if isinstance(error, OSError) else error
    if not isinstance(cause, botocore_errors.ClientError):
        return None
    response: dict[str, Any] = cause.response
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(response.get("Error", {}).get("Code", ""))


def is_full(error: BaseException) -> bool:
    """Return True if a disk or quota is full, locally or on S3."""
    if isinstance(error, StorageFull):
        return True
    if (response := _s3_response(error)) is not None:
        return response[0] == 507 or response[1] in _FULL_CODES
    if isinstance(error, OSError):
        return error.errno in _FULL_ERRNOS
    # FAISS raises RuntimeError with the words of the operating system.
    words = (os.strerror(number) for number in _FULL_ERRNOS)
    return isinstance(error, RuntimeError) and any(text in str(error) for text in words)


def full_error(error: BaseException, uri: str) -> StorageFull:
    """Return the StorageFull for an error of which `is_full` is True."""
    what = "the quota is used up" if getattr(error, "errno", None) == errno.EDQUOT else "the disk or quota is full"
    return StorageFull(
        f"{uri}: cannot write: {what} ({message_of(error)}); free space there or raise the quota, and run the "
        "same command again: finished work is kept"
    )


def unavailable(error: BaseException, uri: str, doing: str, tried_s: float = 0.0) -> StorageUnavailable:
    """Return the StorageUnavailable for a transient error, after attempts for ``tried_s`` seconds."""
    reason = message_of(error)
    tried = f", tried for {tried_s:.0f} s (storage.retry_s)" if tried_s else ""
    return StorageUnavailable(
        f"{uri}: cannot {doing}: {reason}{tried}; this may pass: check the server, network or mount, and run the "
        "same command again to continue"
    )


def retrying(
    action: Callable[[], T],
    uri: str,
    doing: str,
    retry_s: float,
    is_retried: Callable[[BaseException], bool] = is_transient,
) -> T:
    """Call ``action`` until it succeeds or fails permanently, for at most ``retry_s`` seconds of transient errors.

    Args:
        action: may be called any number of times.
        uri: what it reads or writes, for the message.
        doing: verb for the message, such as ``read``.
        retry_s: seconds from the first failure on after which no further attempt is made.
        is_retried: decides which errors are transient.

    Returns:
        The result of ``action``.

    Raises:
        StorageUnavailable: it still failed with a transient error when ``retry_s`` were over.
        Exception: any other error of ``action``, unchanged.
    """
    first_failure, attempt = None, 0
    while True:
        try:
            return action()
        except Exception as error:
            if not is_retried(error):
                raise
            now = time.monotonic()
            first_failure = now if first_failure is None else first_failure
            left_s = first_failure + retry_s - now
            if left_s <= 0:
                raise unavailable(error, uri, doing, now - first_failure) from error
            logging.getLogger(__name__).info("%s: cannot %s yet: %s", uri, doing, message_of(error))
        attempt += 1
        time.sleep(min(left_s, random.uniform(0, min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**attempt))))


def lost_mount(path: str, roots: Sequence[str] = (), *, was_listed: bool = False) -> str | None:
    """Return the local folder whose mount has disappeared, if that is why a file below it is not found; else None.

    An unmounted disk or share leaves an empty mount point, or no folder at all, so that its files look deleted.

    Args:
        path: absolute path of a file that was not found.
        roots: folders known to have files: one of them above ``path`` is lost if it is missing or empty.
        was_listed: whether the file has been there before. Without a known root, its nearest folder that still
            exists is then taken for a mount point if it is empty and is not the file's own.
    """
    folder = next((root for root in roots if path.startswith(f"{root}/")), None)
    if folder is not None:
        return folder if is_empty_or_missing(folder) else None
    if not was_listed:
        return None
    parent = os.path.dirname(path)
    for folder in _ancestors(parent):
        if os.path.isdir(folder):
            return folder if folder != parent and is_empty_or_missing(folder) else None
    return None


def is_empty_or_missing(folder: str) -> bool:
    """Return True if a local folder does not exist, has no entries or is on a stale mount."""
    try:
        with os.scandir(folder) as entries:
            return next(iter(entries), None) is None
    except OSError as error:
        return isinstance(error, FileNotFoundError) or is_transient(error)


def _ancestors(folder: str) -> Iterator[str]:
    while True:
        yield folder
        if folder == (folder := os.path.dirname(folder)):
            return


def local_mode(path: str) -> int | None:
    """Return the mode bits of a local file or folder; None if it does not exist or cannot be looked up.

    Unlike ``os.path.exists`` it does not take a stale mount for a missing file.

    Raises:
        OSError: a transient error.
    """
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        if is_transient(error):
            raise
        return None
