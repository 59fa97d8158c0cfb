"""The botocore client of S3, and what both of the other S3 clients, s3fs and obstore, take from it.

Botocore resolves the AWS environment variables and configuration files: credentials, region, FIPS, dual-stack and
PrivateLink endpoints, path or virtual-hosted style, proxies. s3fs is built on botocore and gets the same session
settings. obstore has its own reading of some of these variables, so it is given the address that botocore has sent
a request to (`bucket_address`), and every setting is passed explicitly.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

import botocore.loaders
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError

from synthscale.config import StorageConfig
from synthscale.errors import StorageError
from synthscale.storage.retries import is_transient

_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
"""Environment variables of a file of certificate authorities, used where botocore has no setting of its own."""


@dataclass(frozen=True)
class BucketAddress:
    """Where requests for a bucket are sent.

    Attributes:
        endpoint: URL without a trailing slash; it contains the bucket's name if ``is_virtual_hosted``.
        is_virtual_hosted: whether the bucket is part of the host name, and not of the path.
        region: region that requests are signed for.
    """

    endpoint: str
    is_virtual_hosted: bool
    region: str


def ca_bundle(session: Any) -> str | None:
    """Return the file of certificate authorities that the user has set; None uses the defaults.

    Raises:
        StorageError: AWS_CA_BUNDLE, or ``ca_bundle`` in the AWS configuration, names no readable file.
    """
    configured = session.get_config_variable("ca_bundle")
    if configured:
        if not os.path.isfile(configured) or not os.access(configured, os.R_OK):
            raise StorageError(
                f"{configured}: not a readable file; set AWS_CA_BUNDLE to a file of PEM certificates"
            )
        return str(configured)
    # As for OpenSSL, a variable that names no file has no effect.
    files = (os.environ.get(name, "") for name in _CA_VARIABLES)
    return next((file for file in files if os.path.isfile(file)), None)


def configure_session(session: Any) -> Any:
    """Make all clients of a botocore or aiobotocore session trust the user's certificate authorities."""
    session.set_config_variable("ca_bundle", ca_bundle(session))
    return session


def client_options(session: Any, storage: StorageConfig) -> dict[str, str]:
    """Return the arguments of ``create_client`` that decide where requests go."""
    region = storage.region or session.get_config_variable("region") or "us-east-1"
    return {"region_name": region} | ({"endpoint_url": storage.endpoint_url} if storage.endpoint_url else {})


@lru_cache(maxsize=8)
def s3_client(storage: StorageConfig, pid: int) -> Any:
    """Return this process's botocore client of S3.

    Args:
        storage: S3 settings.
        pid: id of the process, because connections must not be shared across a fork.

    Raises:
        StorageError: the endpoint or the file of certificate authorities is not usable.
        BotoCoreError: botocore cannot be configured, for example because the profile does not exist.
    """
    session = botocore.session.Session(profile=storage.profile)
    session.register_component("data_loader", _service_models(session.get_config_variable("data_path")))
    configure_session(session)
    try:
        client = session.create_client(
            "s3",
            **client_options(session, storage),
            config=ClientConfig(
                signature_version=UNSIGNED if storage.anon else None,
                connect_timeout=5,
                read_timeout=10,
                retries={"total_max_attempts": 2},
                max_pool_connections=storage.requests_in_flight,
            ),
        )
        # Raises ValueError for a port that is no number or out of range.
        _ = urlsplit(client.meta.endpoint_url).port
    except ValueError as error:
        raise StorageError(
            f"{error}; write the endpoint as http://HOST:PORT or https://HOST in storage.endpoint_url, "
            "AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3 or the AWS configuration file"
        ) from error
    client.synthscale_session = session
    return client


@lru_cache(maxsize=4)
def _service_models(data_path: str | None) -> Any:
    """Return botocore's loader of service descriptions: a loader per session would parse them again each time.

    Args:
        data_path: further folders of descriptions, botocore's setting ``data_path`` (AWS_DATA_PATH).
    """
    return botocore.loaders.create_loader(data_path)


def bucket_address(bucket: str, client: Any) -> BucketAddress:
    """Return where botocore sends requests for a bucket, which may be in another region than the configured one.

    Sends a HEAD request. Not safe for threads that share ``client``.

    Raises:
        BotoCoreError, ClientError: a transient error.
    """
    sent: list[tuple[str, str]] = []

    def note(request: Any, region_name: str, **_: Any) -> None:
        # `region_name` is the client's, also when S3 has redirected the request to another region.
        sent.append((request.url, request.context.get("signing", {}).get("region") or region_name))

    event = "before-sign.s3.HeadBucket"
    client.meta.events.register(event, note)
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        # Without an answer about the region, the wrong one would be used for as long as this process lives. After
        # any other error, botocore has repeated the request in the region that S3 reports.
        if is_transient(error):
            raise
    finally:
        client.meta.events.unregister(event, note)
    url, region = sent[-1]
    endpoint = url.partition("?")[0].rstrip("/")
    is_in_path = urlsplit(endpoint).path.endswith(f"/{quote(bucket)}")
    return BucketAddress(
        endpoint.removesuffix(f"/{quote(bucket)}") if is_in_path else endpoint, not is_in_path, region
    )
