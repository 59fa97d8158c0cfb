"""GETs of whole objects and of ranges from S3, by the hundred: obstore's synchronous calls, made from threads.

s3fs is the way to everything else on S3; this is the hot one, at a tenth of its CPU time per object
(benchmarks/stream.py). Endpoint, region, profile and credentials are found where s3fs finds them, by botocore.
obstore retries refusals (429, 5xx), resets and time-outs with jittered back-off; bodies that end early are retried
here, since only the manifest knows their length.
"""

import os
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from synthscale.config import StorageConfig
from synthscale.errors import StorageError
from synthscale.storage.filesystems import FileInfo
from synthscale.tables.faults import ImageFault, Reason
from synthscale.tables.layout import StoredFile

_TRIES = 4
"""GETs of an object whose body ends early or breaks off."""
_FIRST_PAUSE_S = 0.2
_RETRY: dict[str, Any] = {
    "max_retries": 8,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2},
    "retry_timeout": timedelta(seconds=120),
}
_BRIEFLY: dict[str, Any] = {**_RETRY, "max_retries": 2, "retry_timeout": timedelta(seconds=8)}
_CLIENT: dict[str, Any] = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=10)}
_MAKING = threading.Lock()
_CREDENTIALS_FOR = timedelta(minutes=10)
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AccessDenied"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_SLOWER = {"SlowDown", "ServiceUnavailable", "TooManyRequests", "RequestLimitExceeded"}


def get(
    stored: StoredFile, storage: StorageConfig, limit_bytes: int, span: tuple[int, int] | None = None
) -> bytes:
    """Return the bytes of an object, or those of ``start <= offset < stop``; raise ImageFault with the reason.

    Args:
        stored: where it is, and what the manifest knows of it: another etag, or size, is a fault.
        storage: how it is reached.
        limit_bytes: larger objects are refused, before their body is read.
        span: reads a range.
    """
    bucket, _, key = stored.uri.removeprefix("s3://").partition("/")
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(random.uniform(0, _FIRST_PAUSE_S * 2**attempt))
        try:
            data = _get(client(bucket, storage), key, stored, limit_bytes, span)
        except (BaseError, FileNotFoundError) as error:
            fault = fault_of(error, stored.uri)
            if fault.reason is not Reason.TRUNCATED:
                raise fault from error
            continue
        wanted = stored.size_bytes if span is None else span[1] - span[0]
        if wanted is None or len(data) == wanted:
            return data
        fault = ImageFault(Reason.TRUNCATED, f"{stored.uri}: {len(data)} bytes came of {wanted}")
    raise fault


def _get(store: S3Store, key: str, stored: StoredFile, limit_bytes: int, span: tuple[int, int] | None) -> bytes:
    result = store.get(key, options={} if span is None else {"range": span})
    etag = (result.meta["e_tag"] or "").strip('"')
    if stored.etag is not None and etag and etag != stored.etag:
        raise ImageFault(Reason.CHANGED, f"{stored.uri}: has changed since it was listed (etag {etag})")
    size = result.meta["size"] if span is None else span[1] - span[0]
    if size > limit_bytes:
        raise ImageFault(Reason.TOO_LARGE, f"{stored.uri}: {size} bytes, limit {limit_bytes}")
    return result.bytes().to_bytes()


def fault_of(error: Exception, uri: str) -> ImageFault:
    """Say what obstore's error means; its words hold the answer's status and S3's code."""
    words = str(error).partition("Debug source")[0]
    code = found[1] if (found := re.search(r"<Code>(\w+)</Code>", words)) else ""
    status = found[1] if (found := re.search(r"status code: (\d{3})", words)) else ""
    if code == "NoSuchBucket":
        return ImageFault(Reason.NOT_FOUND, f"{uri}: there is no such bucket")
    if isinstance(error, FileNotFoundError):
        return ImageFault(Reason.NOT_FOUND, f"{uri}: not found")
    if code in _EXPIRED:
        return ImageFault(Reason.ACCESS_DENIED, f"{uri}: the credentials have expired")
    if code in _REFUSED or isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return ImageFault(Reason.ACCESS_DENIED, f"{uri}: access denied{f' ({code})' if code else ''}")
    if code in _ELSEWHERE or "redirect" in words:
        return ImageFault(Reason.READ_ERROR, f"{uri}: the bucket is in another region; set storage.region")
    if code in _SLOWER or status in {"429", "503"}:
        return ImageFault(Reason.THROTTLED, f"{uri}: the server wants fewer requests ({status} {code})")
    if "response body" in words:
        return ImageFault(Reason.TRUNCATED, f"{uri}: the connection broke off in the body")
    return ImageFault(Reason.READ_ERROR, f"{uri}: {' '.join(words.split())}")


@contextmanager
def listing_errors(uri: str, doing: str) -> Iterator[None]:
    """Turn what goes wrong between a listing and S3 into a StorageError that says what was tried."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        raise StorageError(f"cannot {doing} {fault_of(error, uri).detail}") from error
    except ImageFault as fault:
        raise StorageError(f"cannot {doing} {fault.detail}") from fault


def try_listing(bucket: str, prefix: str | None, storage: StorageConfig) -> None:
    """List one object at most: what is wrong with an address, a name or a key shows in seconds."""
    next(iter(client(bucket, storage, is_patient=False).list(prefix, chunk_size=1)), None)


def is_denied(error: BaseError) -> bool:
    """Tell whether credentials are good, and what was asked is not allowed with them."""
    return "<Code>AccessDenied</Code>" in str(error)


def file_info_of(bucket: str, item: Any) -> FileInfo:
    """Return what obstore says of an object."""
    return FileInfo(f"{bucket}/{item['path']}", item["size"], (item["e_tag"] or "").strip('"') or None)


def client(bucket: str, storage: StorageConfig, *, is_patient: bool = True) -> S3Store:
    """Return this process's client of a bucket; an impatient one gives up in seconds."""
    # Making one takes a tenth of a second: the threads of a process wait for the first.
    with _MAKING:
        return _store(bucket, storage, os.getpid(), is_patient)


@lru_cache(maxsize=16)
def _store(bucket: str, storage: StorageConfig, pid: int, is_patient: bool) -> S3Store:
    """Return a process's client of a bucket; one must never be used across a fork."""
    settings = {**_settings(bucket, storage, pid), "retry_config": _RETRY if is_patient else _BRIEFLY}
    return S3Store(bucket, **settings)


@lru_cache(maxsize=16)
def _settings(bucket: str, storage: StorageConfig, pid: int) -> dict[str, Any]:
    """Return what all of a process's clients of a bucket share; asks the bucket for its region."""
    try:
        session = botocore.session.Session(profile=storage.profile)
        client = session.create_client(
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
            raise ImageFault(
                Reason.ACCESS_DENIED,
                f"s3://{bucket}: no credentials were found; set storage.anon for a public bucket",
            )
        endpoint = str(client.meta.endpoint_url)
        settings: dict[str, Any] = {
            "region": _region_of(bucket, client),
            "client_options": {**_CLIENT, "allow_http": endpoint.startswith("http://")},
            "skip_signature": storage.anon,
        }
        if not endpoint.endswith(".amazonaws.com"):
            settings["endpoint"] = endpoint
        if credentials is not None:
            settings["credential_provider"] = _Credentials(credentials)
        return settings
    except BotoCoreError as error:
        raise ImageFault(Reason.READ_ERROR, f"s3://{bucket}: {error}") from error


def _region_of(bucket: str, client: Any) -> str:
    """Return the region that a bucket says it is in, which may not be the configured one."""
    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region") or client.meta.region_name)


class _Credentials:
    """Gives obstore what botocore has, renewed before it expires."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> Any:
        now = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_FOR,
        }
