"""Listings of folders and prefixes: every file once, sorted by path; errors are reported within seconds."""

import socket
import time

import pytest

from synthscale.config import Config, StorageConfig
from synthscale.errors import StorageError
from synthscale.ingest.discover import discover
from synthscale.storage import listing
from synthscale.storage.listing import FolderNotes, list_pages
from tests.object_server import Fault, ObjectServer

LOCAL = StorageConfig()


@pytest.fixture(scope="module")
def server():
    with ObjectServer() as server:
        yield server


@pytest.fixture
def storage(server, s3_clients_of_its_own):
    server.fault()
    return StorageConfig(endpoint_url=server.endpoint_url)


def names(uri, storage):
    return [info.path for page in list_pages(uri, storage) for info in page]


TREES = {
    "flat": [f"{i:04d}.png" for i in range(40)],
    "nested": [f"{a}/{b}/{c}.png" for a in "abc" for b in "xyz" for c in range(4)],
    "uneven": ["a.png", "a/b.png", "a-b/c.png", "a.b/c.png", "b/c/d/e/f.png", "z.png", "ü é&/x y.png", "b/c.png"],
}


@pytest.mark.parametrize("tree", TREES)
def test_a_folder_and_a_prefix_give_the_same_listing_sorted_by_path(server, storage, tmp_path, monkeypatch, tree):
    monkeypatch.setattr(listing, "_PAGE", 7)
    monkeypatch.setattr(listing, "_LIST_THREADS", 3)
    for name in TREES[tree]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
        server.put(tree, f"top/{name}", name.encode())
    server.put(tree, "topmost.png", b"not below top/")
    expected = sorted(TREES[tree])
    assert [path.removeprefix(f"{tmp_path}/") for path in names(str(tmp_path), LOCAL)] == expected
    assert [path.removeprefix(f"{tree}/top/") for path in names(f"s3://{tree}/top/", storage)] == expected
    assert names(f"s3://{tree}/top", storage) == names(f"s3://{tree}/top/", storage)
    for uri, where in ((str(tmp_path), LOCAL), (f"s3://{tree}/top", storage)):
        sizes = [info.size_bytes for page in list_pages(uri, where) for info in page]
        assert sizes == [len(name.encode()) for name in expected]


def test_a_whole_bucket_can_be_listed(server, storage):
    server.put("whole", "a/b.png", b"x")
    server.put("whole", "c.png", b"x")
    assert names("s3://whole", storage) == ["whole/a/b.png", "whole/c.png"]


def test_sub_prefixes_are_listed_in_parallel(server, storage, monkeypatch):
    monkeypatch.setattr(listing, "_MAX_DEPTH", 1)
    for i in range(12):
        server.put("wide", f"p{i:02d}/a.png", b"x")
    server.fault(Fault(r"wide\?", latency_s=0.5))
    start = time.monotonic()
    assert len(names("s3://wide", storage)) == 12
    # Three rounds of 0.5 s: the first page, the folders, and the twelve folders in parallel.
    assert time.monotonic() - start < 6


def test_a_listing_can_be_closed_while_the_prefetch_queue_is_full(server, storage, monkeypatch):
    monkeypatch.setattr(listing, "_PAGE", 5)
    monkeypatch.setattr(listing, "_PAGES_AHEAD", 2)
    for branch in "ab":
        for i in range(100):
            server.put("long", f"{branch}/{i:03d}.png", b"x")
    pages = list_pages("s3://long", storage)
    next(pages)
    pages.close()
    assert len(names("s3://long", storage)) == 200


def test_links_to_files_and_folders_are_followed(tmp_path):
    top, out = tmp_path / "top", tmp_path / "out"
    (top / "b").mkdir(parents=True)
    (out / "deep").mkdir(parents=True)
    for name in (out / "a.png", out / "deep" / "c.png", top / "b" / "d.png"):
        name.write_bytes(b"abc")
    (top / "link.png").symlink_to(out / "a.png")
    (top / "outside").symlink_to(out)
    (top / "b2").symlink_to("b")
    (top / "b" / "up").symlink_to("..")
    (out / "deep" / "back").symlink_to(out)
    (top / "itself").symlink_to("itself")
    (top / "broken.png").symlink_to(tmp_path / "none")
    notes = FolderNotes()
    (page,) = list_pages(str(top), LOCAL, notes)
    found = {info.path.removeprefix(f"{top}/"): info.size_bytes for info in page}
    assert list(found) == sorted(found)
    assert {name: size for name, size in found.items() if size == 3} == dict.fromkeys(
        ("link.png", "outside/a.png", "outside/deep/c.png", "b/d.png", "b2/d.png"), 3
    )
    assert set(found) - {name for name, size in found.items() if size == 3} == {"broken.png", "itself"}
    assert notes.outside == [f"{top}/outside"]
    assert notes.inside == [f"{top}/b2"]
    assert sorted(notes.loops) == [f"{top}/b/up", f"{top}/b2/up", f"{top}/outside/deep/back"]


def test_a_link_to_a_folder_outside_that_leads_back_ends(tmp_path):
    (tmp_path / "top").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "top" / "go").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "back").symlink_to(tmp_path / "top")
    (tmp_path / "top" / "a.png").write_bytes(b"x")
    (page,) = list_pages(str(tmp_path / "top"), LOCAL)
    assert [info.path for info in page] == [f"{tmp_path}/top/a.png"]


@pytest.mark.parametrize(
    ("uri", "fault", "words"),
    [
        ("s3://nowhere/real", None, "no such bucket"),
        ("s3://known/real", "denied", "access denied"),
        ("s3://known/real", "expired", "credentials have expired"),
        ("s3://known/real", "moved", "another region; set storage.region"),
    ],
)
def test_a_set_that_cannot_be_listed_gives_a_one_line_error_within_seconds(server, storage, uri, fault, words):
    server.put("known", "fake/a.png", b"x")
    server.fault(*([] if fault is None else [Fault(r"known\?", fault)]))
    start = time.monotonic()
    with pytest.raises(StorageError) as error:
        discover(Config(real=uri, synthetic={"gan": "s3://known/fake"}, storage=storage))
    assert time.monotonic() - start < 15
    assert error.value.exit_code == 2
    assert words in str(error.value)
    assert uri in str(error.value)
    assert "\n" not in str(error.value)
    assert "of-the-test" not in str(error.value)


def test_an_unreachable_server_is_reported_within_seconds(storage):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    unreachable = StorageConfig(endpoint_url=f"http://127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(StorageError, match=str(port)):
        names("s3://known/real", unreachable)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("error", [AttributeError, SystemExit, KeyError])
def test_an_unforeseen_error_in_a_listing_thread_reaches_the_caller(server, storage, monkeypatch, error):
    for branch in "abc":
        server.put("odd", f"{branch}/1.png", b"x")
    convert = listing.to_file_info

    def fail_in_b(bucket, item):
        if item["path"].startswith("b/"):
            raise error("unforeseen")
        return convert(bucket, item)

    monkeypatch.setattr(listing, "to_file_info", fail_in_b)
    with pytest.raises(error, match="unforeseen"):
        names("s3://odd", storage)


def test_a_throttled_listing_is_retried_and_complete(server, storage):
    for i in range(20):
        server.put("busy", f"a/{i}.png", b"x")
    server.fault(Fault(r"busy\?", "slow_down", times=2))
    assert len(names("s3://busy/a", storage)) == 20
