"""GET requests for S3 objects and byte ranges, with retries, through obstore.

obstore's synchronous calls are made from many threads. They cost a tenth of the CPU time of s3fs per object
(benchmarks/stream.py), so images are fetched and prefixes listed (listing.py) with obstore; everything else on S3
goes through s3fs (filesystems.py). Endpoint, region, profile and credentials come from botocore, as they do for
s3fs. Transient errors are repeated by `retries.retrying`, not by obstore, so that one deadline holds for all of
them. Bodies shorter than listed are requested again here, because only the manifest knows the expected length.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, SSLError
from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from synthscale.config import StorageConfig
from synthscale.errors import StorageError
from synthscale.storage.filesystems import FileInfo
from synthscale.storage.retries import (
    is_transient,
    message_of,
    retrying,
    status_and_code,
    storage_error_types,
    unavailable,
)
from synthscale.storage.s3_client import bucket_address, ca_bundle, s3_client
from synthscale.tables.faults import Reason, RowFault
from synthscale.tables.layout import StoredFile

_MAX_ATTEMPTS = 4
"""GET requests for an object whose body has another length than listed, the first one included."""
_NO_RETRY: dict[str, Any] = {"max_retries": 0}
"""obstore's own retries: none."""
_SHORT_RETRY: dict[str, Any] = {
    "max_retries": 2,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2},
    "retry_timeout": timedelta(seconds=8),
}
"""obstore's retries in `check_listing`, so that a wrong endpoint, bucket or key is reported within seconds."""
_ODD_KEY = re.compile(r"^/|/$|^$|//|(^|/)\.\.?(/|$)|[\x00-\x1f\x7f]")
"""S3 keys that obstore cannot express."""
_CLIENT: dict[str, Any] = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=10)}
_CLIENT_LOCK = threading.Lock()
_CREDENTIALS_LIFETIME = timedelta(minutes=10)
"""Time after which obstore asks botocore for the credentials again."""

# S3 error codes, grouped by the message that the user gets.
_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_DENIED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AccessDenied"}
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


def get_object(
    stored: StoredFile, storage: StorageConfig, limit_bytes: int, span: tuple[int, int] | None = None
) -> bytes:
    """Return the content of an object, or of one byte range of it.

    Args:
        stored: URI, and size and etag from the manifest; None of these is not checked.
        storage: S3 settings.
        limit_bytes: maximum size of the object or range; larger ones are refused before their body is read.
        span: (start, stop) of the range in bytes, ``start <= offset < stop``; None reads the whole object.

    Raises:
        RowFault: with the reason. CHANGED if the etag differs from the manifest's, TRUNCATED if the size still
            differs after ``_MAX_ATTEMPTS`` requests, TOO_LARGE over the limit, otherwise as `to_row_fault` says.
        StorageUnavailable: the error is transient, and lasted for ``storage.retry_s``.
    """
    bucket, _, key = stored.uri.removeprefix("s3://").partition("/")
    expected = stored.size_bytes if span is None else span[1] - span[0]

    arguments: dict[str, Any] = {"key": key, "stored": stored, "limit_bytes": limit_bytes, "span": span}
    source = Bucket(bucket, storage)
    for _ in range(_MAX_ATTEMPTS):
        try:
            if is_plain_key(key):
                data: bytes = source.ask(key, "read", partial(_get, **arguments))
            else:
                data = source.ask_botocore(
                    key, "read", partial(_get_odd, **arguments, more=source.botocore_arguments)
                )
        except (BaseError, FileNotFoundError, BotoCoreError, ClientError) as error:
            raise to_row_fault(error, stored.uri) from error
        if expected is None or len(data) == expected:
            return data
    raise RowFault(Reason.TRUNCATED, f"{stored.uri}: received {len(data):,} of {expected:,} bytes")


def _get(store: S3Store, key: str, stored: StoredFile, limit_bytes: int, span: tuple[int, int] | None) -> bytes:
    result = store.get(key, options={} if span is None else {"range": span})
    size = result.meta["size"] if span is None else span[1] - span[0]
    _check(stored, result.meta["e_tag"], size, limit_bytes)
    return result.bytes().to_bytes()


def _get_odd(
    client: Any,
    key: str,
    stored: StoredFile,
    limit_bytes: int,
    span: tuple[int, int] | None,
    more: dict[str, str],
) -> bytes:
    """Get an object whose key obstore cannot express (`is_plain_key`), with botocore."""
    range_of = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
    response = client.get_object(Key=key, **range_of, **more)
    with closing(response["Body"]) as body:
        _check(
            stored, response["ETag"], response["ContentLength"] if span is None else span[1] - span[0], limit_bytes
        )
        data: bytes = body.read()
        return data


def _check(stored: StoredFile, etag: str | None, size: int, limit_bytes: int) -> None:
    """Raise RowFault if a response has another etag than listed, or is too large."""
    etag = (etag or "").strip('"')
    if stored.etag is not None and etag and etag != stored.etag:
        raise RowFault(Reason.CHANGED, f"{stored.uri}: has changed since it was listed (etag {etag})")
    if size > limit_bytes:
        raise RowFault(Reason.TOO_LARGE, f"{stored.uri}: {size:,} bytes, limit {limit_bytes:,}")


def is_plain_key(key: str) -> bool:
    """Return True if obstore can express an S3 key, or a prefix with its trailing slash removed.

    obstore's paths have no empty, ``.`` or ``..`` segments and no control characters; it refuses such keys, and
    removes a slash at either end.
    """
    return not _ODD_KEY.search(key)


def to_row_fault(error: Exception, uri: str) -> RowFault:
    """Convert a permanent obstore error to a RowFault; the S3 error code is parsed from its message."""
    message, (_, code) = message_of(error), status_and_code(error)
    if code == "NoSuchBucket":
        return RowFault(Reason.NOT_FOUND, f"{uri}: there is no such bucket")
    if isinstance(error, FileNotFoundError) or code in _MISSING:
        return RowFault(Reason.NOT_FOUND, f"{uri}: not found")
    if code in _EXPIRED:
        return RowFault(Reason.ACCESS_DENIED, f"{uri}: the credentials have expired")
    if code in _DENIED or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return RowFault(Reason.ACCESS_DENIED, f"{uri}: access denied{f' ({code})' if code else ''}")
    if code in _OTHER_REGION or "redirect" in message:
        return RowFault(Reason.READ_ERROR, f"{uri}: the bucket is in another region; set storage.region")
    return RowFault(Reason.READ_ERROR, f"{uri}: {message}")


@contextmanager
def listing_errors(uri: str, doing: str) -> Iterator[None]:
    """Convert errors of S3 listings to StorageError: "cannot ``doing`` ``uri``: reason"."""
    try:
        yield
    except storage_error_types() as error:
        if is_transient(error):
            raise unavailable(error, uri, doing) from error
        raise StorageError(f"cannot {doing} {to_row_fault(error, uri).detail}") from error
    except RowFault as fault:
        raise StorageError(f"cannot {doing} {fault.detail}") from fault


def check_listing(bucket: str, prefix: str | None, storage: StorageConfig) -> None:
    """List one object, with few retries: the first contact, where a wrong setting has to show within seconds.

    A server that answers with a transient error (429, 5xx) passes: requests that follow are repeated for longer.

    Raises:
        BaseError: obstore's error; `listing_errors` converts it.
        FileNotFoundError: the bucket does not exist.
        RowFault: there are no credentials, or botocore cannot be configured.
        StorageError: the server does not answer.
    """
    try:
        with _CLIENT_LOCK:
            store = _store(bucket, storage, os.getpid(), is_first_contact=True)
        if prefix is None or is_plain_key(prefix.removesuffix("/")):
            with suppress(InvalidPathError):
                next(iter(store.list(prefix, chunk_size=1)), None)
        else:
            source = Bucket(bucket, storage)
            s3_client(storage, os.getpid()).list_objects_v2(Prefix=prefix, MaxKeys=1, **source.botocore_arguments)
    except storage_error_types() as error:
        if not is_transient(error):
            raise
        if not (isinstance(error, ClientError) or any(status_and_code(error))):
            advice = "check storage.endpoint_url and the network"
            if isinstance(error, SSLError):
                advice = "set AWS_CA_BUNDLE to the file of a private certificate authority"
            raise StorageError(f"cannot list s3://{bucket}: {message_of(error)}; {advice}") from error


def check_reachable(uri: str, storage: StorageConfig) -> None:
    """Raise StorageError within seconds if ``uri`` is on S3 and the server does not answer.

    Other errors, such as a missing bucket, are left to the request that meets them.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if uri.startswith("s3://"):
        with suppress(BaseError, FileNotFoundError, RowFault, ValueError):
            check_listing(bucket, prefix or None, storage)


def is_denied(error: Exception) -> bool:
    """Return True if the credentials are valid but do not permit the request."""
    return status_and_code(error)[1] == "AccessDenied"


def to_file_info(bucket: str, item: Any) -> FileInfo:
    """Convert obstore's metadata of a listed object to a FileInfo."""
    return FileInfo(f"{bucket}/{item['path']}", item["size"], (item["e_tag"] or "").strip('"') or None)


def bucket_client(bucket: str, storage: StorageConfig) -> S3Store:
    """Return this process's obstore client of a bucket, which repeats no request: callers use `retrying`.

    Raises:
        RowFault: there are no credentials, or botocore cannot be configured.
        BotoCoreError, ClientError: the bucket's region cannot be asked for at the moment.
    """
    # A client takes 0.1 s to create: without the lock, every thread would create its own.
    with _CLIENT_LOCK:
        return _store(bucket, storage, os.getpid(), is_first_contact=False)


@dataclass(frozen=True)
class Bucket:
    """A bucket on S3 whose requests are repeated after transient errors.

    Attributes:
        name: name of the bucket.
        storage: S3 settings.
    """

    name: str
    storage: StorageConfig

    def ask(self, key: str, doing: str, request: Callable[[S3Store], Any]) -> Any:
        """Return the result of ``request``, which gets the bucket's client.

        Raises:
            BaseError, FileNotFoundError: a permanent error.
            RowFault: there are no credentials, or botocore cannot be configured.
            StorageUnavailable: a transient error lasted for ``storage.retry_s``; it says "cannot ``doing``".
        """
        uri = f"s3://{self.name}/{key}"
        return retrying(lambda: request(bucket_client(self.name, self.storage)), uri, doing, self.storage.retry_s)

    def ask_botocore(self, key: str, doing: str, request: Callable[[Any], Any]) -> Any:
        """Return the result of ``request``, which gets botocore's S3 client; for what obstore cannot express.

        Raises:
            BotoCoreError, ClientError: a permanent error.
            StorageUnavailable: as `ask`.
        """
        uri = f"s3://{self.name}/{key}"
        return retrying(lambda: request(s3_client(self.storage, os.getpid())), uri, doing, self.storage.retry_s)

    @property
    def botocore_arguments(self) -> dict[str, str]:
        """Arguments of all requests that are made with botocore's client."""
        payer = {"RequestPayer": "requester"} if self.storage.requester_pays else {}
        return {"Bucket": self.name, **payer}


@lru_cache(maxsize=16)
def _store(bucket: str, storage: StorageConfig, pid: int, is_first_contact: bool) -> S3Store:
    """Create a client; ``pid`` is part of the cache key because obstore is not fork-safe."""
    retry = _SHORT_RETRY if is_first_contact else _NO_RETRY
    return S3Store(bucket, **{**_settings(bucket, storage, pid), "retry_config": retry})


@lru_cache(maxsize=16)
def _settings(bucket: str, storage: StorageConfig, pid: int) -> dict[str, Any]:
    """Return the S3Store arguments that all clients of a bucket share; sends a request for the bucket.

    obstore reads environment variables too, some of them with another meaning or precedence than botocore: all
    settings that decide where a request goes, and what is in it, are passed.
    """
    try:
        client = s3_client(storage, pid)
        session = client.synthscale_session
        credentials = None if storage.anon else session.get_credentials()
        if credentials is None and not storage.anon:
            raise RowFault(
                Reason.ACCESS_DENIED,
                f"s3://{bucket}: no credentials were found; set storage.anon for a public bucket",
            )
        address = bucket_address(bucket, client)
        options = {**_CLIENT, "allow_http": address.endpoint.startswith("http://")}
        if (authorities := ca_bundle(session)) is not None:
            with open(authorities, "rb") as file:
                options["root_certificate"] = file.read()
        settings: dict[str, Any] = {
            "region": address.region,
            "endpoint": address.endpoint,
            "aws_endpoint_url_s3": address.endpoint,
            "virtual_hosted_style_request": address.is_virtual_hosted,
            "request_payer": storage.requester_pays,
            "s3_express": False,
            "client_options": options,
            "skip_signature": storage.anon,
        }
        if credentials is not None:
            settings["credential_provider"] = _Credentials(credentials)
        return settings
    except BotoCoreError as error:
        if is_transient(error):
            raise
        raise RowFault(Reason.READ_ERROR, f"s3://{bucket}: {error}") from error


class _Credentials:
    """Credential provider for obstore backed by botocore, which renews credentials before they expire."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> Any:
        try:
            current = self._credentials.get_frozen_credentials()
        except (BotoCoreError, ClientError) as error:
            if is_transient(error):
                # obstore reports every error of this call as missing credentials; `is_transient` knows this type.
                raise ConnectionError(f"the credentials could not be renewed: {error}") from error
            raise
        return {
            "access_key_id": current.access_key,
            "secret_access_key": current.secret_key,
            "token": current.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LIFETIME,
        }
