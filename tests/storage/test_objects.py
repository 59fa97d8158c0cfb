"""GETs from S3: what is retried, what is a fault, and that nothing but the object's own bytes comes back."""

from datetime import timedelta

import pytest

from synthscale.config import Config, StorageConfig
from synthscale.embed.image_reader import fetch_all
from synthscale.storage import objects
from synthscale.storage.objects import get
from synthscale.tables.faults import ImageFault, Reason
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
    backoff = {"init_backoff": timedelta(seconds=0.01), "max_backoff": timedelta(seconds=0.05), "base": 2}
    retry = {"max_retries": 3, "backoff": backoff, "retry_timeout": timedelta(seconds=20)}
    monkeypatch.setattr(objects, "_RETRY", retry)
    monkeypatch.setattr(objects, "_FIRST_PAUSE_S", 0.01)
    server.fault()
    return StorageConfig(endpoint_url=server.endpoint_url)


URI = "s3://bucket/a b/ü&.png"
KNOWN = StoredFile(URI, len(DATA))


def fault_of(stored, storage, **options):
    with pytest.raises(ImageFault) as caught:
        get(stored, storage, LIMIT, **options)
    assert "s3://bucket" in caught.value.detail or "s3://nowhere" in caught.value.detail
    assert "of-the-test" not in caught.value.detail
    return caught.value


def test_an_object_comes_with_one_request_and_no_head(server, storage):
    for _ in range(3):
        assert get(KNOWN, storage, LIMIT) == DATA
    assert server.asked() == {"bucket/a b/ü&.png": 3}
    assert server.asked("HEAD") == {"bucket": 1}


def test_a_range_comes_alone(server, storage):
    assert get(StoredFile(URI), storage, LIMIT, (100, 300)) == DATA[100:300]
    assert get(StoredFile(URI), storage, 200, (100, 300)) == DATA[100:300]
    assert fault_of(StoredFile(URI), storage, span=(len(DATA) - 10, len(DATA) + 10)).reason is Reason.TRUNCATED


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(objects, "_CLIENT", {"timeout": timedelta(seconds=1)})


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["slow_down", "error", "reset", "cut", "short", "hang"])
def test_what_passes_is_tried_again(server, storage, kind):
    server.fault(Fault("bucket/a b", kind, times=2))
    assert get(KNOWN, storage, LIMIT) == DATA
    assert server.asked()["bucket/a b/ü&.png"] == 3


def test_a_slow_answer_is_waited_for(server, storage):
    server.fault(Fault("bucket/many/000", "drip"))
    assert get(StoredFile("s3://bucket/many/000.png", 5000), storage, LIMIT) == DATA[:5000]


@pytest.mark.parametrize(
    ("kind", "reason", "words"),
    [
        ("slow_down", Reason.THROTTLED, "fewer requests"),
        ("error", Reason.READ_ERROR, "500"),
        ("denied", Reason.ACCESS_DENIED, "AccessDenied"),
        ("expired", Reason.ACCESS_DENIED, "expired"),
        ("reset", Reason.READ_ERROR, "error"),
        ("hang", Reason.READ_ERROR, "error"),
        ("cut", Reason.TRUNCATED, "broke off"),
        ("short", Reason.TRUNCATED, "10240 bytes came of 20480"),
    ],
)
def test_what_stays_is_a_fault_with_its_reason(server, storage, impatient, kind, reason, words):
    server.fault(Fault("bucket/a b", kind))
    fault = fault_of(KNOWN, storage)
    assert fault.reason is reason
    assert words in fault.detail
    assert "\n" not in fault.detail
    asked = server.asked()["bucket/a b/ü&.png"]
    if reason is Reason.ACCESS_DENIED:
        assert asked == 1
    else:
        assert asked >= 4


def test_missing_objects_and_buckets_are_not_found(storage):
    assert fault_of(StoredFile("s3://bucket/none.png"), storage).reason is Reason.NOT_FOUND
    missing = fault_of(StoredFile("s3://nowhere/none.png"), storage)
    assert missing.reason is Reason.NOT_FOUND
    assert "bucket" in missing.detail


def test_an_object_that_was_replaced_after_it_was_listed_has_changed(server, storage):
    server.put("bucket", "changing.png", b"first")
    listed = StoredFile("s3://bucket/changing.png", 5, "8b04d5e3775d298e78455efc5ca404d5")  # md5 of "first"
    assert get(listed, storage, LIMIT) == b"first"
    server.put("bucket", "changing.png", b"other")
    assert fault_of(listed, storage).reason is Reason.CHANGED


def test_a_longer_object_than_listed_is_not_taken_for_it(server, storage):
    assert fault_of(StoredFile(URI, 100), storage).reason is Reason.TRUNCATED


def test_too_large_an_object_is_refused(server, storage):
    with pytest.raises(ImageFault) as caught:
        get(KNOWN, storage, 100)
    assert caught.value.reason is Reason.TOO_LARGE


def test_an_empty_object_is_empty(server, storage):
    server.put("bucket", "empty.png", b"")
    assert get(StoredFile("s3://bucket/empty.png", 0), storage, LIMIT) == b""


def test_no_credentials_is_said_and_anonymous_needs_none(server, storage, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fault = fault_of(KNOWN, storage)
    assert fault.reason is Reason.ACCESS_DENIED
    assert "storage.anon" in fault.detail
    assert get(KNOWN, storage.model_copy(update={"anon": True}), LIMIT) == DATA


def test_a_profile_gives_endpoint_and_credentials(server, storage, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile mine]\nregion = eu-west-1\nendpoint_url = {server.endpoint_url}\n")
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert get(KNOWN, StorageConfig(profile="mine"), LIMIT) == DATA


def test_many_are_in_flight_at_once_and_come_in_order(server, storage):
    server.fault(Fault("many", latency_s=1.0))
    files = [StoredFile(f"s3://bucket/many/{i:03d}.png", 5000) for i in range(300)]
    found = list(fetch_all(files, Config(storage=storage)))
    assert found == [DATA[i : 5000 + i] for i in range(300)]
    assert server.most_at_once() > 64


@pytest.mark.parametrize(("limit", "most"), [({"mib_in_flight": 1}, 5), ({"requests_in_flight": 3}, 3)])
def test_no_more_is_asked_for_at_once_than_is_configured(server, storage, limit, most):
    for i in range(20):
        server.put("bucket", f"large/{i:02d}.png", b"x" * 200_000)
    server.fault(Fault("large", latency_s=0.05))
    files = [StoredFile(f"s3://bucket/large/{i:02d}.png", 200_000) for i in range(20)]
    found = list(fetch_all(files, Config(storage=storage.model_copy(update=limit))))
    assert [len(data) for data in found] == [200_000] * 20
    assert 1 < server.most_at_once() <= most


def test_a_fault_of_one_costs_the_others_nothing(server, storage):
    server.fault(Fault("many/00[3-5]", "denied"), Fault("many/007", "cut"))
    files = [StoredFile(f"s3://bucket/many/{i:03d}.png", 5000) for i in range(20)]
    found = list(fetch_all(files, Config(storage=storage)))
    bad = [i for i, data in enumerate(found) if isinstance(data, ImageFault)]
    assert bad == [3, 4, 5, 7]
    assert [found[i].reason.value for i in bad] == ["access_denied"] * 3 + ["truncated"]
