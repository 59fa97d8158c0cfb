"""Files below a folder, or objects below an S3 prefix, in the order of their paths, a few thousand at a time.

Prefixes below one are listed beside one another, so that a large set takes minutes and not hours; what is listed
ahead of its turn is bounded, and no one holds the whole listing.
"""

import os
import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import S3Store

from synthscale.config import StorageConfig
from synthscale.storage import filesystems as fsys
from synthscale.storage.filesystems import FileInfo
from synthscale.storage.objects import client, file_info_of, listing_errors, try_listing

_LISTERS = 16
"""Prefixes that are listed at once."""
_PAGE = 5000
_PAGES_AHEAD = 8
_DEPTH = 3
_MOST_BRANCHES = 4096


def walk(uri: str, storage: StorageConfig) -> Iterator[list[FileInfo]]:
    """Yield the files below a folder or prefix; raise StorageError where they cannot be listed."""
    if fsys.is_s3(uri):
        yield from _objects(uri, storage)
        return
    page: list[FileInfo] = []
    with fsys.storage_errors(uri, "list"):
        for info in _files(uri):
            page.append(info)
            if len(page) == _PAGE:
                yield page
                page = []
    yield page


def _files(folder: str) -> Iterator[FileInfo]:
    """Yield a folder's files; links to files are followed, those to folders are not."""
    with os.scandir(folder) as found:
        entries = list(found)
    # So that the order is that of whole paths.
    entries.sort(key=lambda entry: f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        elif not entry.is_dir():
            try:
                state = entry.stat()
            except FileNotFoundError:
                # A link to nothing fails as its row.
                state = entry.stat(follow_symlinks=False)
            yield FileInfo(entry.path, state.st_size, fsys.file_etag(state))


def _objects(uri: str, storage: StorageConfig) -> Iterator[list[FileInfo]]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    with listing_errors(uri, "list"):
        try_listing(bucket, prefix, storage)
        store = client(bucket, storage)
        branches = _branches(store, prefix)
        yield from _pages(store, bucket, prefix) if branches is None else _in_order(store, bucket, branches)


def _branches(store: S3Store, prefix: str) -> list[str] | None:
    """Return prefixes that hold all that lies below one, ascending; None where there is nothing to divide."""
    found = [prefix]
    for _ in range(_DEPTH):
        deeper = []
        for each in found:
            if _is_flat(store, each):
                deeper.append(each)
                continue
            listed = store.list_with_delimiter(each)
            below = [f"{folder}/" for folder in sorted(listed["common_prefixes"])]
            # Objects beside folders have to be put in order with them: such a prefix is not divided.
            deeper += below if below and not listed["objects"] else [each]
        if deeper == found or len(deeper) > _MOST_BRANCHES:
            break
        found = deeper
        if len(found) >= _LISTERS:
            break
    return sorted(found) if len(found) > 1 else None


def _is_flat(store: S3Store, prefix: str) -> bool:
    """Tell whether a prefix begins with objects of its own; by folders, all of them would be listed at once."""
    first = next(iter(store.list(prefix, chunk_size=_PAGE)), [])
    return any("/" not in item["path"].removeprefix(prefix) for item in first)


def _in_order(store: S3Store, bucket: str, branches: list[str]) -> Iterator[list[FileInfo]]:
    """Yield the pages of branch after branch, while those that follow are listed already."""
    over = threading.Event()
    waiting: deque[queue.Queue[Any]] = deque()
    following = iter(branches)
    with ThreadPoolExecutor(_LISTERS) as pool:
        try:
            while True:
                while len(waiting) < _LISTERS and (branch := next(following, None)) is not None:
                    waiting.append(queue.Queue(_PAGES_AHEAD))
                    pool.submit(_fill, store, bucket, branch, waiting[-1], over)
                if not waiting:
                    return
                while (page := waiting[0].get()) is not None:
                    if isinstance(page, Exception):
                        raise page
                    yield page
                waiting.popleft()
        finally:
            over.set()


def _fill(store: S3Store, bucket: str, branch: str, pages: "queue.Queue[Any]", over: threading.Event) -> None:
    """Put a branch's pages into a queue, and None, or the error, behind them."""

    def put(item: Any) -> None:
        while not over.is_set():
            try:
                pages.put(item, timeout=1)
                return
            except queue.Full:
                continue

    try:
        for page in _pages(store, bucket, branch):
            put(page)
            if over.is_set():
                return
    except (BaseError, FileNotFoundError) as error:
        put(error)
        return
    put(None)


def _pages(store: S3Store, bucket: str, prefix: str) -> Iterator[list[FileInfo]]:
    for page in store.list(prefix, chunk_size=_PAGE):
        # A place holder of a folder, as some tools make them, is no file.
        yield [file_info_of(bucket, item) for item in page if not item["path"].endswith("/")]
