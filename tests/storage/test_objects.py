"""S3 GETs: errors that are repeated and then end the run, and those that become faults of their rows."""

from datetime import timedelta

import pytest
from botocore.credentials import Credentials
from botocore.exceptions import CredentialRetrievalError

from synthscale.config import Config, StorageConfig
from synthscale.embed.image_reader import fetch_all
from synthscale.errors import StorageUnavailable
from synthscale.storage import objects, retries
from synthscale.storage.objects import get_object
from synthscale.tables.faults import Reason, RowFault
from synthscale.tables.layout import StoredFile
from tests.object_server import Fault, ObjectServer

DATA = bytes(range(256)) * 80
LIMIT = 2**20


@pytest.fixture(scope="module")
def server():
    with ObjectServer() as server:
        server.put("bucket", "a b/ü&.png", DATA)
        for i in range(300):
            server.put("bucket", f"many/{i:03d}.png", DATA[i : 5000 + i])
        yield server


@pytest.fixture
def storage(server, s3_clients_of_its_own, monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "_MAX_PAUSE_S", 0.05)
    server.fault()
    return StorageConfig(endpoint_url=server.endpoint_url, retry_s=20)


URI = "s3://bucket/a b/ü&.png"
KNOWN = StoredFile(URI, len(DATA))


def fault_of(stored, storage, **options):
    with pytest.raises(RowFault) as caught:
        get_object(stored, storage, LIMIT, **options)
    assert "s3://bucket" in caught.value.detail or "s3://nowhere" in caught.value.detail
    assert "of-the-test" not in caught.value.detail
    return caught.value


def test_an_object_is_read_with_one_get_and_no_head(server, storage):
    for _ in range(3):
        assert get_object(KNOWN, storage, LIMIT) == DATA
    assert server.asked() == {"bucket/a b/ü&.png": 3}
    assert server.asked("HEAD") == {"bucket": 1}


def test_a_range_get_returns_only_the_range(server, storage):
    assert get_object(StoredFile(URI), storage, LIMIT, (100, 300)) == DATA[100:300]
    assert get_object(StoredFile(URI), storage, 200, (100, 300)) == DATA[100:300]
    assert fault_of(StoredFile(URI), storage, span=(len(DATA) - 10, len(DATA) + 10)).reason is Reason.TRUNCATED


@pytest.fixture
def short_timeout(monkeypatch):
    monkeypatch.setattr(objects, "_CLIENT", {"timeout": timedelta(seconds=1)})


@pytest.mark.usefixtures("short_timeout")
@pytest.mark.parametrize("kind", ["slow_down", "error", "reset", "cut", "short", "hang"])
def test_temporary_faults_are_retried(server, storage, kind):
    server.fault(Fault("bucket/a b", kind, times=2))
    assert get_object(KNOWN, storage, LIMIT) == DATA
    assert server.asked()["bucket/a b/ü&.png"] == 3


def test_a_slow_response_is_not_a_fault(server, storage):
    server.fault(Fault("bucket/many/000", "drip"))
    assert get_object(StoredFile("s3://bucket/many/000.png", 5000), storage, LIMIT) == DATA[:5000]


@pytest.mark.parametrize("kind", ["slow_down", "error", "reset", "cut"])
def test_a_fault_is_waited_for_while_it_lasts(server, storage, kind):
    server.fault(Fault("bucket/a b", kind, for_s=1.5))
    assert get_object(KNOWN, storage, LIMIT) == DATA
    assert server.asked()["bucket/a b/ü&.png"] > 4


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("slow_down", "503"),
        ("error", "500"),
        ("reset", "error sending request"),
        ("hang", "error sending request"),
        ("cut", "response body"),
    ],
)
def test_transient_faults_that_last_end_the_run_as_resumable(server, storage, monkeypatch, kind, words):
    monkeypatch.setattr(objects, "_CLIENT", {"timeout": timedelta(seconds=0.2 if kind == "hang" else 5)})
    server.fault(Fault("bucket/a b", kind))
    with pytest.raises(StorageUnavailable) as caught:
        get_object(KNOWN, storage.model_copy(update={"retry_s": 0.6}), LIMIT)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert words in message
    assert URI in message
    assert "same command again" in message
    assert "\n" not in message
    assert "of-the-test" not in message
    assert server.asked()["bucket/a b/ü&.png"] >= 3


@pytest.mark.parametrize(
    ("kind", "reason", "words", "requests"),
    [
        ("denied", Reason.ACCESS_DENIED, "AccessDenied", 1),
        ("expired", Reason.ACCESS_DENIED, "expired", 1),
        ("short", Reason.TRUNCATED, "received 10,240 of 20,480 bytes", 4),
    ],
)
def test_permanent_faults_are_raised_with_their_reason(server, storage, kind, reason, words, requests):
    server.fault(Fault("bucket/a b", kind))
    fault = fault_of(KNOWN, storage)
    assert fault.reason is reason
    assert words in fault.detail
    assert "\n" not in fault.detail
    assert server.asked()["bucket/a b/ü&.png"] == requests


def test_a_bucket_whose_region_cannot_be_asked_for_is_waited_for(server, storage):
    server.fault(Fault("bucket!", "slow_down", times=2))
    assert get_object(KNOWN, storage, LIMIT) == DATA
    assert server.asked("HEAD")["bucket"] > 2


def test_credentials_that_cannot_be_renewed_for_a_while_are_no_denied_access(server, storage, monkeypatch):
    real, renewals = Credentials.get_frozen_credentials, []

    def renew(self):
        renewals.append(1)
        # The first asks for the bucket's region, the others come from obstore.
        if 1 < len(renewals) < 4:
            raise CredentialRetrievalError(provider="test", error_msg="503")
        return real(self)

    monkeypatch.setattr(Credentials, "get_frozen_credentials", renew)
    assert get_object(KNOWN, storage, LIMIT) == DATA
    assert len(renewals) == 4


def test_one_fault_that_lasts_ends_the_fetching_of_all_without_waiting_for_the_others(server, storage):
    server.fault(Fault("many/003", "slow_down"), Fault("many/0[1-9]", "hang"))
    files = [StoredFile(f"s3://bucket/many/{i:03d}.png", 5000) for i in range(100)]
    contents = fetch_all(files, Config(storage=storage.model_copy(update={"retry_s": 0.5})))
    assert [next(contents) for _ in range(3)] == [DATA[i : 5000 + i] for i in range(3)]
    with pytest.raises(StorageUnavailable, match="many/003"):
        next(contents)
    server.fault()


def test_missing_objects_and_buckets_are_not_found(storage):
    assert fault_of(StoredFile("s3://bucket/none.png"), storage).reason is Reason.NOT_FOUND
    missing = fault_of(StoredFile("s3://nowhere/none.png"), storage)
    assert missing.reason is Reason.NOT_FOUND
    assert "bucket" in missing.detail


def test_an_object_replaced_after_listing_is_changed(server, storage):
    server.put("bucket", "changing.png", b"first")
    listed = StoredFile("s3://bucket/changing.png", 5, "8b04d5e3775d298e78455efc5ca404d5")  # md5 of "first"
    assert get_object(listed, storage, LIMIT) == b"first"
    server.put("bucket", "changing.png", b"other")
    assert fault_of(listed, storage).reason is Reason.CHANGED


def test_an_object_of_another_size_than_listed_is_a_fault(server, storage):
    assert fault_of(StoredFile(URI, 100), storage).reason is Reason.TRUNCATED


def test_an_object_over_the_size_limit_is_refused(server, storage):
    with pytest.raises(RowFault) as caught:
        get_object(KNOWN, storage, 100)
    assert caught.value.reason is Reason.TOO_LARGE


def test_an_empty_object_is_read(server, storage):
    server.put("bucket", "empty.png", b"")
    assert get_object(StoredFile("s3://bucket/empty.png", 0), storage, LIMIT) == b""


def test_missing_credentials_are_reported_and_anonymous_access_needs_none(server, storage, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fault = fault_of(KNOWN, storage)
    assert fault.reason is Reason.ACCESS_DENIED
    assert "storage.anon" in fault.detail
    assert get_object(KNOWN, storage.model_copy(update={"anon": True}), LIMIT) == DATA


def test_a_profile_supplies_endpoint_and_credentials(server, storage, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile mine]\nregion = eu-west-1\nendpoint_url = {server.endpoint_url}\n")
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert get_object(KNOWN, StorageConfig(profile="mine"), LIMIT) == DATA


def test_many_requests_are_in_flight_and_results_keep_their_order(server, storage):
    server.fault(Fault("many", latency_s=0.5))
    files = [StoredFile(f"s3://bucket/many/{i:03d}.png", 5000) for i in range(300)]
    contents = list(fetch_all(files, Config(storage=storage)))
    assert contents == [DATA[i : 5000 + i] for i in range(300)]
    assert server.most_at_once() > 64


@pytest.mark.parametrize(("limit", "most"), [({"mib_in_flight": 1}, 5), ({"requests_in_flight": 3}, 3)])
def test_requests_in_flight_stay_within_the_configured_limits(server, storage, limit, most):
    for i in range(20):
        server.put("bucket", f"large/{i:02d}.png", b"x" * 200_000)
    server.fault(Fault("large", latency_s=0.05))
    files = [StoredFile(f"s3://bucket/large/{i:02d}.png", 200_000) for i in range(20)]
    contents = list(fetch_all(files, Config(storage=storage.model_copy(update=limit))))
    assert [len(data) for data in contents] == [200_000] * 20
    assert 1 < server.most_at_once() <= most


def test_a_fault_of_one_object_does_not_affect_others(server, storage):
    server.fault(Fault("many/00[3-5]", "denied"), Fault("many/007", "short"))
    files = [StoredFile(f"s3://bucket/many/{i:03d}.png", 5000) for i in range(20)]
    contents = list(fetch_all(files, Config(storage=storage)))
    faults = [i for i, data in enumerate(contents) if isinstance(data, RowFault)]
    assert faults == [3, 4, 5, 7]
    assert [contents[i].reason.value for i in faults] == ["access_denied"] * 3 + ["truncated"]
