"""GET requests for S3 objects and byte ranges, with retries, through obstore.

obstore's synchronous calls are made from many threads. They cost a tenth of the CPU time of s3fs per object
(benchmarks/stream.py), so images are fetched and prefixes listed (listing.py) with obstore; everything else on S3
goes through s3fs (filesystems.py). Endpoint, region, profile and credentials come from botocore, as they do for
s3fs. Transient errors are repeated by `retries.retrying`, not by obstore, so that one deadline holds for all of
them. Bodies shorter than listed are requested again here, because only the manifest knows the expected length.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any

import botocore.loaders
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
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
_CLIENT: dict[str, Any] = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=10)}
_CLIENT_LOCK = threading.Lock()
_CREDENTIALS_LIFETIME = timedelta(minutes=10)
"""Time after which obstore asks botocore for the credentials again."""

# S3 error codes, grouped by the message that the user gets.
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

    get = partial(_get, key=key, stored=stored, limit_bytes=limit_bytes, span=span)
    for _ in range(_MAX_ATTEMPTS):
        try:
            data: bytes = Bucket(bucket, storage).ask(key, "read", get)
        except (BaseError, FileNotFoundError) as error:
            raise to_row_fault(error, stored.uri) from error
        if expected is None or len(data) == expected:
            return data
    raise RowFault(Reason.TRUNCATED, f"{stored.uri}: received {len(data):,} of {expected:,} bytes")


def _get(store: S3Store, key: str, stored: StoredFile, limit_bytes: int, span: tuple[int, int] | None) -> bytes:
    result = store.get(key, options={} if span is None else {"range": span})
    etag = (result.meta["e_tag"] or "").strip('"')
    if stored.etag is not None and etag and etag != stored.etag:
        raise RowFault(Reason.CHANGED, f"{stored.uri}: has changed since it was listed (etag {etag})")
    size = result.meta["size"] if span is None else span[1] - span[0]
    if size > limit_bytes:
        raise RowFault(Reason.TOO_LARGE, f"{stored.uri}: {size:,} bytes, limit {limit_bytes:,}")
    return result.bytes().to_bytes()


def to_row_fault(error: Exception, uri: str) -> RowFault:
    """Convert a permanent obstore error to a RowFault; the S3 error code is parsed from its message."""
    message, (_, code) = message_of(error), status_and_code(error)
    if code == "NoSuchBucket":
        return RowFault(Reason.NOT_FOUND, f"{uri}: there is no such bucket")
    if isinstance(error, FileNotFoundError):
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
        next(iter(store.list(prefix, chunk_size=1)), None)
    except storage_error_types() as error:
        if not is_transient(error):
            raise
        if not (isinstance(error, ClientError) or any(status_and_code(error))):
            raise StorageError(
                f"cannot list s3://{bucket}: {message_of(error)}; check storage.endpoint_url and the network"
            ) from error


def check_reachable(uri: str, storage: StorageConfig) -> None:
    """Raise StorageError within seconds if ``uri`` is on S3 and the server does not answer.

    Other errors, such as a missing bucket, are left to the request that meets them.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if uri.startswith("s3://"):
        with suppress(BaseError, FileNotFoundError, RowFault, ValueError):
            check_listing(bucket, prefix or None, storage)


def is_denied(error: BaseError) -> bool:
    """Return True if the credentials are valid but do not permit the request."""
    return "<Code>AccessDenied</Code>" in str(error)


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


@lru_cache(maxsize=16)
def _store(bucket: str, storage: StorageConfig, pid: int, is_first_contact: bool) -> S3Store:
    """Create a client; ``pid`` is part of the cache key because obstore is not fork-safe."""
    retry = _SHORT_RETRY if is_first_contact else _NO_RETRY
    return S3Store(bucket, **{**_settings(bucket, storage, pid), "retry_config": retry})


@lru_cache(maxsize=16)
def _settings(bucket: str, storage: StorageConfig, pid: int) -> dict[str, Any]:
    """Return the S3Store arguments that all clients of a bucket share; requests the bucket's region."""
    try:
        session = botocore.session.Session(profile=storage.profile)
        session.register_component("data_loader", _service_models(session.get_config_variable("data_path")))
        s3 = session.create_client(
            "s3",
            region_name=storage.region or session.get_config_variable("region") or "us-east-1",
            endpoint_url=storage.endpoint_url,
            config=ClientConfig(
                signature_version=UNSIGNED if storage.anon else None,
                connect_timeout=5,
                read_timeout=10,
                retries={"total_max_attempts": 2},
            ),
        )
        credentials = None if storage.anon else session.get_credentials()
        if credentials is None and not storage.anon:
            raise RowFault(
                Reason.ACCESS_DENIED,
                f"s3://{bucket}: no credentials were found; set storage.anon for a public bucket",
            )
        endpoint = str(s3.meta.endpoint_url)
        settings: dict[str, Any] = {
            "region": _region_of(bucket, s3),
            "client_options": {**_CLIENT, "allow_http": endpoint.startswith("http://")},
            "skip_signature": storage.anon,
        }
        if not endpoint.endswith(".amazonaws.com"):
            settings["endpoint"] = endpoint
        if credentials is not None:
            settings["credential_provider"] = _Credentials(credentials)
        return settings
    except BotoCoreError as error:
        if is_transient(error):
            raise
        raise RowFault(Reason.READ_ERROR, f"s3://{bucket}: {error}") from error


@lru_cache(maxsize=4)
def _service_models(data_path: str | None) -> Any:
    """Return botocore's loader of service descriptions: a loader per session would parse them again each time.

    Args:
        data_path: further folders of descriptions, botocore's setting ``data_path`` (AWS_DATA_PATH).
    """
    return botocore.loaders.create_loader(data_path)


def _region_of(bucket: str, s3: Any) -> str:
    """Return the region that S3 reports for a bucket, or the configured one if it reports none."""
    try:
        response = s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        # Without an answer about the region, the wrong one would be used for as long as this process lives.
        if is_transient(error):
            raise
        # S3 sends the region even when it denies access.
        response = error.response
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region") or s3.meta.region_name)


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
