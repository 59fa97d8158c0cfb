"""Sizes and etags of named files, compared with those of a full listing."""

import functools
import time

import numpy as np
import pytest

from synthscale.config import Config, StorageConfig
from synthscale.errors import StorageError
from synthscale.ingest import csv_tables
from synthscale.ingest import file_stats as module
from synthscale.ingest import metadata_tables as manifests
from synthscale.ingest.discover import discover
from synthscale.ingest.file_stats import stat_files
from synthscale.storage.filesystems import file_etag
from synthscale.storage.listing import list_pages
from tests.object_server import Fault, ObjectServer

COUNT = 12_000


@pytest.fixture(scope="module")
def server():
    with ObjectServer() as server:
        server.fill("many", "a-set/", COUNT)
        for key in ("a-set", "a-set.png", "ü é&/x y.png", "ü é&/~.png", "z"):
            server.put("many", key, key.encode())
        yield server


@pytest.fixture
def storage(server, s3_clients_of_its_own):
    server.fault()
    return StorageConfig(endpoint_url=server.endpoint_url)


@functools.cache
def all_of(endpoint_url):
    """Return what a full listing tells of each file; the files are listed once."""
    pages = list_pages("s3://many", StorageConfig(endpoint_url=endpoint_url))
    return {f"s3://{info.path}": info for page in pages for info in page}


@pytest.mark.parametrize("threads", [1, 16])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.01, 0.0005])
def test_infos_equal_those_of_a_full_listing(server, storage, monkeypatch, share, threads):
    monkeypatch.setattr(module, "_THREADS", threads)
    there = all_of(storage.endpoint_url)
    assert len(there) == COUNT + 5
    chosen = np.random.default_rng(0).random(len(there)) < share
    wanted = {uri for uri, own in zip(there, chosen, strict=True) if own}
    absent = {f"{uri[:-4]}-absent.png" for uri in list(wanted)[::7]} | {
        "s3://many/0",
        "s3://many/zz",
        "s3://many/zz/z",
    }
    assert stat_files(wanted | absent, storage) == {uri: there[uri] for uri in wanted}


def test_adjacent_keys_share_list_requests_and_sparse_keys_are_looked_up_by_head(server, storage):
    there = sorted(uri for uri in all_of(storage.endpoint_url) if "a-set/" in uri)
    server.fault()
    stat_files(set(there), storage)
    # Each thread may read one partial page more, and one list request checks access first.
    assert server.asked()["many"] <= COUNT / 1000 + 2 * module._THREADS
    assert sum(server.asked("HEAD").values()) <= 2 + module._THREADS * module._HEAD_KEYS / 10
    server.fault()
    apart = there[::250]
    stat_files(set(apart), storage)
    assert server.asked()["many"] <= module._THREADS
    assert sum(server.asked("HEAD").values()) <= len(apart) + 1


def test_keys_are_looked_up_by_head_if_listing_is_denied(server, storage):
    wanted = {f"s3://many/a-set/00000/{i:04d}.png" for i in range(0, 10_000, 40)}
    server.fault(Fault(r"many\?", "denied"))
    assert stat_files(wanted | {"s3://many/a-set/nothing"}, storage).keys() == wanted


def test_a_missing_bucket_is_an_error(storage):
    with pytest.raises(StorageError, match=r"no-such-bucket/a\.png: there is no such bucket"):
        stat_files({"s3://many/z", "s3://no-such-bucket/a.png"}, storage)


def test_invalid_names_do_not_stop_the_lookup_of_others(storage):
    odd = {"s3://many/a//b.png", "s3://many/../b.png", "s3://many/", "/no/such/file", "\0"}
    assert stat_files(odd | {"s3://many/z"}, storage).keys() == {"s3://many/z"}


@pytest.mark.parametrize(("kind", "told"), [("expired", "expired"), ("moved", "region")])
def test_expired_credentials_and_a_wrong_region_are_reported_in_seconds(server, storage, kind, told):
    server.fault(Fault("many", kind))
    start = time.monotonic()
    with pytest.raises(StorageError, match=told):
        stat_files({"s3://many/a-set/00000/0000.png"}, storage)
    assert time.monotonic() - start < 20


def test_the_rows_do_not_depend_on_the_lookup_batch_size(tmp_path, monkeypatch):
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(b"x" * i)
    lines = [f"{i}.png,{'real' if i % 2 else 'synthetic'},{i}" for i in range(22)]
    (tmp_path / "metadata.csv").write_text("\n".join(["image_filename,real_or_synthetic,seed", *lines]))
    config = Config(manifest=str(tmp_path / "metadata.csv"))
    whole = discover(config).rows.to_pylist()
    assert [row["size_bytes"] for row in whole] == [*range(20), None, None]
    monkeypatch.setattr(manifests, "_LOOKUP_ROWS", 3)
    monkeypatch.setattr(csv_tables, "_BLOCK_BYTES", 64)
    assert discover(config).rows.to_pylist() == whole


def test_images_of_a_table_have_their_size_and_etag(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    table = tmp_path / "metadata.csv"
    table.write_text("image_filename,real_or_synthetic\na.png,real\nb.png,synthetic\nc.png,synthetic\n")
    found = discover(Config(manifest=str(table))).rows
    assert found.column("size_bytes").to_pylist() == [1, 1, None]
    assert found.column("etag").to_pylist() == [
        *(file_etag((tmp_path / f"{name}.png").stat()) for name in "ab"),
        None,
    ]
