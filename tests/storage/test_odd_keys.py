"""S3 keys that are no paths, and placeholders of folders: listed, fetched and named right, or a failed row."""

import pytest

from synthscale.config import StorageConfig, parse_config
from synthscale.errors import StorageError
from synthscale.ingest.discover import discover
from synthscale.ingest.file_stats import stat_files
from synthscale.storage import listing
from synthscale.storage.conditional_file import conditional_file
from synthscale.storage.fetch import fetch
from synthscale.storage.listing import list_pages
from synthscale.tables.faults import Reason, RowFault
from synthscale.tables.layout import StoredFile
from tests.object_server import ObjectServer

ODD = [
    "set//double.png",
    "set/cat//double.png",
    "set/cat/x//y//z.png",
    "set///triple.png",
    "set/./dot.png",
    "set/cat/./dot.png",
    "set/../up.png",
    "set/cat/../up.png",
    "set/cat/..",
    "set/cat/tab\tx.png",
    "set/cat/control\x01.png",
    "set/cat/delete\x7f.png",
    "set/cat/a.png/",
    "set/cat/a.png//",
    "set/a.png/",
]
PLAIN = [
    "set/cat/ blank .png",
    "set/cat/%41%2f.png",
    "set/cat/a+b&c=d?e#f.png",
    "set/cat/back\\slash.png",
    "set/cat/...png",
    "set/cat/*~'(),!;:@$.png",
    "set/cat/é e\u0301 😀.png",
    'set/cat/<&>".png',
]
AROUND = ["set/cat/a.png", "set/cat/z.png", "set/dog/a.png", "set/dog/z.png"]


@pytest.fixture(scope="module")
def server():
    with ObjectServer() as server:
        yield server


@pytest.fixture(params=["moto", "object_server"])
def put(request, s3, server, s3_clients_of_its_own, monkeypatch):
    """Put objects into a fresh bucket of either server; return its name and the settings."""
    monkeypatch.setattr(listing, "_PAGE", 3)

    def put_all(objects):
        bucket = s3.bucket()
        for key, data in objects.items():
            if request.param == "moto":
                s3.client.put_object(Bucket=bucket, Key=key, Body=data)
            else:
                server.put(bucket, key, data)
        url = s3.endpoint_url if request.param == "moto" else server.endpoint_url
        return bucket, StorageConfig(endpoint_url=url, retry_s=5)

    return put_all


def listed(bucket, prefix, storage):
    infos = [info for page in list_pages(f"s3://{bucket}/{prefix}", storage) for info in page]
    return {info.path.removeprefix(f"{bucket}/"): info for info in infos}, len(infos)


@pytest.mark.parametrize("key", ODD + PLAIN)
def test_every_key_is_listed_once_and_fetched(put, key):
    keys = sorted({*AROUND, key})
    bucket, storage = put({name: name.encode() for name in keys})
    for prefix in ("set", ""):
        infos, count = listed(bucket, prefix, storage)
        assert list(infos) == keys
        assert count == len(keys)
    for name, info in infos.items():
        assert info.size_bytes == len(name.encode())
        uri = f"s3://{bucket}/{name}"
        assert fetch(StoredFile(uri, info.size_bytes, info.etag), storage) == name.encode()
        with pytest.raises(RowFault) as caught:
            fetch(StoredFile(uri, info.size_bytes, "0"), storage)
        assert caught.value.reason is Reason.CHANGED
    uris = {f"s3://{bucket}/{name}" for name in keys}
    # Looked up or not, an object is fetched.
    found = stat_files(uris | {f"s3://{bucket}/set//none.png"}, storage)
    assert set(found) <= uris
    for uri in uris:
        assert fetch(StoredFile(uri), storage) == uri.removeprefix(f"s3://{bucket}/").encode()


@pytest.mark.parametrize("key", ["set/cat//none.png", "set/./none.png", "set/none.png/"])
def test_a_missing_odd_key_is_not_found(put, key):
    bucket, storage = put({"set/cat/a.png": b"x"})
    with pytest.raises(RowFault) as caught:
        fetch(StoredFile(f"s3://{bucket}/{key}"), storage)
    assert caught.value.reason is Reason.NOT_FOUND


@pytest.mark.parametrize("prefix", ["set//deep", "set/./deep", "set/../deep", "set/a\tb"])
def test_a_set_below_an_odd_prefix_is_listed(put, prefix):
    names = [f"{prefix}/cat/{i}.png" for i in range(5)]
    bucket, storage = put(dict.fromkeys([*names, "set/other.png"], b"x"))
    assert list(listed(bucket, prefix, storage)[0]) == names


def test_a_trailing_slash_that_obstore_removes_unseen_gives_a_row_that_fails(put):
    bucket, storage = put({"set/cat/a.png": b"a", "set/cat/b.png/": b"b"})
    infos, _ = listed(bucket, "set", storage)
    (odd,) = set(infos) - {"set/cat/a.png"}
    assert odd in {"set/cat/b.png", "set/cat/b.png/"}
    if not odd.endswith("/"):
        with pytest.raises(RowFault) as caught:
            fetch(StoredFile(f"s3://{bucket}/{odd}", 1, infos[odd].etag), storage)
        assert caught.value.reason is Reason.NOT_FOUND


PLACEHOLDERS = {
    "of the set": ["set/"],
    "of folders": ["set/cat/", "set/dog/"],
    "of all": ["set/", "set/cat/", "set/dog/", "set/cat/deep/", "set/cat-b/", "set/cat/deep-er/"],
    "of an empty folder": ["set/empty/"],
    "named like an image": ["set/cat.png/", "set/cat.png/deep/"],
}


@pytest.mark.parametrize("case", PLACEHOLDERS)
def test_placeholders_of_folders_are_no_files_and_do_not_turn_parallel_listing_off(put, monkeypatch, case):
    files = [
        f"set/{folder}/{i}.png" for folder in ("cat", "cat-b", "cat/deep", "cat/deep-er", "dog") for i in range(4)
    ]
    bucket, storage = put(dict.fromkeys(files, b"x") | dict.fromkeys(PLACEHOLDERS[case], b""))
    split = []
    in_order = listing._in_order
    monkeypatch.setattr(
        listing, "_in_order", lambda source, prefixes: split.extend(prefixes) or in_order(source, prefixes)
    )
    infos, _ = listed(bucket, "set", storage)
    assert list(infos) == sorted(files)
    assert {"set/cat/", "set/cat-b/", "set/dog/"} <= set(split)


def test_an_odd_key_does_not_turn_parallel_listing_off(put, monkeypatch):
    files = ["set//x.png", *(f"set/{folder}/{i}.png" for folder in "abc" for i in range(4))]
    bucket, storage = put(dict.fromkeys(files, b"x"))
    by_botocore = []
    pages = listing._botocore_pages
    monkeypatch.setattr(
        listing,
        "_botocore_pages",
        lambda source, prefix, after: by_botocore.append(prefix) or pages(source, prefix, after),
    )
    assert list(listed(bucket, "set", storage)[0]) == sorted(files)
    assert by_botocore == ["set//"]


def test_a_set_with_odd_keys_is_discovered_with_their_names(put):
    images = {
        "set/cat//a.png": b"1",
        "set//b.png": b"2",
        "set/./c.png": b"3",
        "set/dog/d.png": b"4",
        "set/dog/": b"",
    }
    bucket, storage = put(images | {"fake/cat/a.png": b"5"})
    config = parse_config(
        {
            "real": f"s3://{bucket}/set",
            "synthetic": {"gan": f"s3://{bucket}/fake"},
            "storage": storage.model_dump(exclude_none=True),
        }
    )
    dataset = discover(config)
    rows = {row["uri"]: row for row in dataset.rows.to_pylist() if "/set/" in row["uri"]}
    expected = {f"s3://{bucket}/{key}": data for key, data in images.items() if data}
    assert {uri: fetch(StoredFile(uri), storage) for uri in rows} == expected
    assert len({row["id"] for row in rows.values()}) == len(expected)
    assert [note for note in dataset.notes if "no label in common" not in note] == []


@pytest.mark.parametrize("key", ["runs//one", "runs/./one", "../one", "runs/a\tb"])
def test_a_run_is_not_written_below_an_odd_prefix(key):
    with pytest.raises(StorageError, match="--output") as caught:
        conditional_file(f"s3://bucket/{key}/lease.json", StorageConfig())
    assert repr(key)[1:-1].split("\\")[0] in str(caught.value)
