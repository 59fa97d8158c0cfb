"""All S3 clients send their requests to the same place, whatever the environment and the AWS configuration say."""

import os

import pytest

from synthscale.config import StorageConfig, parse_config
from synthscale.errors import ConfigError, StorageError
from synthscale.storage import filesystems as fsys
from synthscale.storage.conditional_file import conditional_file
from synthscale.storage.fetch import fetch
from synthscale.storage.listing import list_pages
from synthscale.tables.layout import StoredFile
from tests.certificates import Authority
from tests.object_server import ObjectServer
from tests.recording_proxy import DATA, RecordingProxy

AWS = "https://my-bucket.s3"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def proxy(authority):
    with RecordingProxy(authority) as proxy:
        yield proxy


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """No AWS setting of the machine; return a function that sets variables and writes the AWS configuration."""
    for name in os.environ:
        if (
            name.startswith("AWS_")
            or name.lower().endswith("_proxy")
            or name in {"REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"}
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access-key-of-the-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def configure(config="", **variables):
        (tmp_path / "config").write_text(f"[default]\n{config}")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return configure


def use_all_clients(uri, storage):
    """List, read and write with each client; return what was read."""
    (page,) = [page for page in list_pages(f"{uri}/set", storage) if page]
    assert [f"s3://{info.path}" for info in page] == [f"{uri}/set/k.png"]
    data = [fetch(StoredFile(f"{uri}/set/k.png"), storage), fsys.read_bytes(f"{uri}/set/k.png", storage)]
    assert [info.path for info in fsys.list_files(f"{uri}/set", storage)] == [info.path for info in page]
    fsys.write_bytes(f"{uri}/set/k.png", b"new", storage)
    assert conditional_file(f"{uri}/set/lock.png", storage).create(b"x") is not None
    return data


CASES = [
    # AWS configuration, variables, storage, expected URL of the bucket, expected region
    ("", {}, {}, f"{AWS}.amazonaws.com", "us-east-1"),
    ("region = eu-west-1\n", {}, {}, f"{AWS}.eu-west-1.amazonaws.com", "eu-west-1"),
    (
        "region = eu-west-1\n",
        {"AWS_DEFAULT_REGION": "us-west-2"},
        {},
        f"{AWS}.us-west-2.amazonaws.com",
        "us-west-2",
    ),
    # Only obstore would read AWS_REGION.
    ("", {"AWS_REGION": "us-west-2"}, {}, f"{AWS}.amazonaws.com", "us-east-1"),
    ("", {"AWS_DEFAULT_REGION": "x"}, {"region": "us-west-2"}, f"{AWS}.us-west-2.amazonaws.com", "us-west-2"),
    ("region = cn-north-1\n", {}, {}, f"{AWS}.cn-north-1.amazonaws.com.cn", "cn-north-1"),
    ("", {}, {"bucket": "my.bucket"}, "https://s3.amazonaws.com/my.bucket", "us-east-1"),
    ("", {}, {"bucket": "elsewhere"}, "https://elsewhere.s3.eu-west-1.amazonaws.com", "eu-west-1"),
    # FIPS, dual-stack, acceleration.
    (
        "region = us-east-2\n",
        {"AWS_USE_FIPS_ENDPOINT": "true"},
        {},
        f"{AWS}-fips.us-east-2.amazonaws.com",
        "us-east-2",
    ),
    ("region = us-east-2\nuse_fips_endpoint = true\n", {}, {}, f"{AWS}-fips.us-east-2.amazonaws.com", "us-east-2"),
    (
        "region = us-gov-west-1\nuse_fips_endpoint = true\n",
        {},
        {},
        f"{AWS}-fips.us-gov-west-1.amazonaws.com",
        None,
    ),
    ("", {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, {}, f"{AWS}.dualstack.us-east-1.amazonaws.com", "us-east-1"),
    ("use_dualstack_endpoint = true\n", {}, {}, f"{AWS}.dualstack.us-east-1.amazonaws.com", "us-east-1"),
    ("s3 =\n  use_dualstack_endpoint = true\n", {}, {}, f"{AWS}.dualstack.us-east-1.amazonaws.com", "us-east-1"),
    ("s3 =\n  use_accelerate_endpoint = true\n", {}, {}, "https://my-bucket.s3-accelerate.amazonaws.com", None),
    (
        "use_fips_endpoint = true\n",
        {"AWS_USE_DUALSTACK_ENDPOINT": "true", "AWS_DEFAULT_REGION": "us-west-2"},
        {},
        f"{AWS}-fips.dualstack.us-west-2.amazonaws.com",
        "us-west-2",
    ),
    # Other endpoints: PrivateLink, other servers.
    (
        "region = us-west-2\n",
        {},
        {"endpoint_url": "https://bucket.vpce-1a2b.s3.us-west-2.vpce.amazonaws.com"},
        "https://bucket.vpce-1a2b.s3.us-west-2.vpce.amazonaws.com/my-bucket",
        "us-west-2",
    ),
    ("", {}, {"endpoint_url": "http://minio.test:9000"}, "http://minio.test:9000/my-bucket", "us-east-1"),
    ("", {}, {"endpoint_url": "http://minio.test:9000/"}, "http://minio.test:9000/my-bucket", "us-east-1"),
    ("", {}, {"endpoint_url": "https://gateway.test/s3/v1"}, "https://gateway.test/s3/v1/my-bucket", "us-east-1"),
    ("", {}, {"endpoint_url": "https://r2.test", "region": "auto"}, "https://r2.test/my-bucket", "auto"),
    ("", {"AWS_ENDPOINT_URL": "http://one.test"}, {}, "http://one.test/my-bucket", "us-east-1"),
    ("", {"AWS_ENDPOINT_URL_S3": "http://two.test"}, {}, "http://two.test/my-bucket", "us-east-1"),
    # Only obstore would read AWS_ENDPOINT.
    ("", {"AWS_ENDPOINT": "http://three.test"}, {}, f"{AWS}.amazonaws.com", "us-east-1"),
    (
        "",
        {"AWS_ENDPOINT_URL": "http://one.test", "AWS_ENDPOINT_URL_S3": "http://two.test"},
        {},
        "http://two.test/my-bucket",
        "us-east-1",
    ),
    (
        "endpoint_url = http://four.test\n",
        {"AWS_ENDPOINT_URL_S3": "http://two.test"},
        {"endpoint_url": "http://minio.test"},
        "http://minio.test/my-bucket",
        "us-east-1",
    ),
    (
        "",
        {"AWS_ENDPOINT_URL_S3": "http://two.test", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
        {},
        f"{AWS}.amazonaws.com",
        "us-east-1",
    ),
    ("endpoint_url = http://four.test\n", {}, {}, "http://four.test/my-bucket", "us-east-1"),
    (
        "services = five\n[services five]\ns3 =\n  endpoint_url = http://five.test\n",
        {},
        {},
        "http://five.test/my-bucket",
        "us-east-1",
    ),
    # Path and virtual-hosted style.
    ("s3 =\n  addressing_style = path\n", {}, {}, "https://s3.amazonaws.com/my-bucket", "us-east-1"),
    (
        "s3 =\n  addressing_style = path\n",
        {"AWS_DEFAULT_REGION": "us-west-2"},
        {},
        "https://s3.us-west-2.amazonaws.com/my-bucket",
        "us-west-2",
    ),
    (
        "s3 =\n  addressing_style = virtual\n",
        {},
        {"endpoint_url": "http://minio.test:9000"},
        "http://my-bucket.minio.test:9000",
        "us-east-1",
    ),
    (
        "",
        {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"},
        {"endpoint_url": "http://a.test"},
        "http://a.test/my-bucket",
        None,
    ),
    # Without credentials, nothing is signed.
    ("", {}, {"anon": True}, f"{AWS}.amazonaws.com", "unsigned"),
    ("", {"AWS_SKIP_SIGNATURE": "true"}, {}, f"{AWS}.amazonaws.com", "us-east-1"),
    # Requester-pays buckets.
    ("", {}, {"requester_pays": True}, f"{AWS}.amazonaws.com", "us-east-1"),
    ("", {"AWS_REQUEST_PAYER": "requester"}, {}, f"{AWS}.amazonaws.com", "us-east-1"),
]


@pytest.mark.usefixtures("s3_clients_of_its_own")
@pytest.mark.parametrize(("config", "variables", "storage", "url", "region"), CASES)
def test_all_clients_go_to_the_same_place(clean, proxy, config, variables, storage, url, region):
    clean(config, **variables, AWS_CA_BUNDLE=str(proxy.authority.path))
    clean(config, HTTP_PROXY=proxy.url, HTTPS_PROXY=proxy.url, http_proxy=proxy.url, https_proxy=proxy.url)
    storage = dict(storage)
    bucket = storage.pop("bucket", "my-bucket")
    proxy.sent.clear()
    settings = StorageConfig(**storage, retry_s=1)
    assert use_all_clients(f"s3://{bucket}", settings) == [DATA, DATA]
    assert {sent.method for sent in proxy.sent} >= {"GET", "PUT"}
    assert len(proxy.sent) >= 7
    for sent in proxy.sent:
        assert sent.url.rstrip("/") in {url, f"{url}/set/k.png", f"{url}/set/lock.png"}
        assert sent.payer == ("requester" if settings.requester_pays else None)
    regions = {sent.region for sent in proxy.sent}
    assert len(regions) == 1
    assert region is None or regions == {None if region == "unsigned" else region}


TRUSTED = {
    "AWS_CA_BUNDLE": ("", {"AWS_CA_BUNDLE": "{}"}),
    "REQUESTS_CA_BUNDLE": ("", {"REQUESTS_CA_BUNDLE": "{}"}),
    "SSL_CERT_FILE": ("", {"SSL_CERT_FILE": "{}"}),
    "ca_bundle": ("ca_bundle = {}\n", {}),
    "both": ("ca_bundle = {}\n", {"REQUESTS_CA_BUNDLE": "/none", "SSL_CERT_FILE": "/none"}),
}


@pytest.fixture(scope="module")
def tls_server(authority):
    with ObjectServer(authority.certificate("127.0.0.1"), authority.path) as server:
        yield server


@pytest.mark.usefixtures("s3_clients_of_its_own")
@pytest.mark.parametrize("case", TRUSTED)
def test_a_private_certificate_authority_is_trusted_by_all_clients(clean, authority, tls_server, case):
    bucket = case.replace("_", "-").lower()
    tls_server.put(bucket, "set/k.png", DATA)
    config, variables = TRUSTED[case]
    clean(
        config.format(authority.path), **{name: value.format(authority.path) for name, value in variables.items()}
    )
    storage = StorageConfig(endpoint_url=tls_server.endpoint_url, retry_s=0)
    assert use_all_clients(f"s3://{bucket}", storage) == [DATA, DATA]


@pytest.mark.usefixtures("s3_clients_of_its_own")
@pytest.mark.parametrize("anon", [False, True])
def test_an_authority_that_is_not_trusted_ends_the_run_and_the_message_names_the_variable(clean, tls_server, anon):
    tls_server.put("private", "set/k.png", DATA)
    clean()
    storage = StorageConfig(endpoint_url=tls_server.endpoint_url, anon=anon)
    with pytest.raises(StorageError, match="AWS_CA_BUNDLE") as caught:
        list(list_pages("s3://private/set", storage))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("s3_clients_of_its_own")
@pytest.mark.parametrize("name", ["none.pem", ""])
def test_an_aws_ca_bundle_that_is_no_file_is_named(clean, tls_server, tmp_path, name):
    clean(AWS_CA_BUNDLE=str(tmp_path / name))
    storage = StorageConfig(endpoint_url=tls_server.endpoint_url)
    for read in (
        lambda: list(list_pages("s3://private/set", storage)),
        lambda: fsys.exists("s3://private/set", storage),
    ):
        with pytest.raises(StorageError, match="AWS_CA_BUNDLE") as caught:
            read()
        assert str(tmp_path / name) in str(caught.value)


NO_URLS = [
    "localhost:9000",
    "minio",
    "//minio:9000",
    "http:/minio",
    "http//minio",
    "http://",
    "ftp://minio",
    "s3://bucket",
    " http://minio",
    "http://min io",
    "http://minio?x=1",
    "",
]


@pytest.mark.parametrize("url", NO_URLS)
def test_an_endpoint_that_is_no_url_is_one_line_that_shows_how_to_write_it(url):
    with pytest.raises(ConfigError, match=r"storage.endpoint_url.*http://HOST") as caught:
        parse_config({"storage": {"endpoint_url": url}})
    assert repr(url) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://h", "https://h:1/", "http://[::1]:9000", "https://h.test/a/b", "http://10.0.0.1:9"]
)
def test_endpoints_with_a_scheme_are_accepted(url):
    assert parse_config({"storage": {"endpoint_url": url}}).storage.endpoint_url == url


@pytest.mark.usefixtures("s3_clients_of_its_own")
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "endpoint_url"])
@pytest.mark.parametrize("url", ["localhost:9000", "minio", "http://", "http://h:99999"])
def test_an_endpoint_of_the_environment_that_is_no_url_is_one_line(clean, name, url):
    if name == "endpoint_url":
        clean(f"endpoint_url = {url}\n")
    else:
        clean(**{name: url})
    storage = StorageConfig(retry_s=0)
    for read in (
        lambda: list(list_pages("s3://bucket/set", storage)),
        lambda: fsys.exists("s3://bucket/set", storage),
    ):
        with pytest.raises(StorageError, match=r"http://HOST:PORT.*AWS_ENDPOINT_URL") as caught:
            read()
        assert url in str(caught.value) or "99999" in url
        assert "\n" not in str(caught.value)
