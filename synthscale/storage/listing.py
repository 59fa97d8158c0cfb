"""Listings of local folders and S3 prefixes, sorted by path, in pages of a few thousand files.

An S3 prefix is split into sub-prefixes that are listed in parallel, so that a large set takes minutes and not
hours. The number of pages that are prefetched is bounded, and the whole listing is never in memory.
"""

import errno
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from obstore.store import S3Store

from synthscale.config import StorageConfig
from synthscale.storage import filesystems as fsys
from synthscale.storage.filesystems import FileInfo
from synthscale.storage.objects import Bucket, check_listing, listing_errors, to_file_info
from synthscale.storage.retries import retrying

_LIST_THREADS = 16
"""Number of S3 prefixes listed in parallel, one thread each."""
_PAGE = 5000
"""Files per page."""
_PAGES_AHEAD = 8
"""Maximum number of pages prefetched per prefix: with 16 prefixes up to 640,000 files are in memory."""
_MAX_DEPTH = 3
"""Maximum number of folder levels by which a prefix is split."""
_MAX_PREFIXES = 4096
"""A split into more sub-prefixes than this is not used."""
_Identity = tuple[int, int]
"""Device and inode of a folder."""


@dataclass
class FolderNotes:
    """Symbolic links to folders and unreadable folders that a listing met, by their paths.

    Attributes:
        outside: followed to a folder outside the listed one.
        inside: followed to another folder below the listed one, whose files are then listed twice.
        loops: not followed, since they lead to a folder that contains them.
        denied: folders that may not be listed.
    """

    outside: list[str] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)


def list_pages(uri: str, storage: StorageConfig, notes: FolderNotes | None = None) -> Iterator[list[FileInfo]]:
    """Yield all files below a local folder or S3 prefix, sorted by path.

    Args:
        uri: local folder, whose links to files and folders are followed, or S3 prefix.
        storage: S3 settings.
        notes: links to folders and unreadable folders are added to it.

    Yields:
        Pages of up to ``_PAGE`` files; a page may be empty.

    Raises:
        StorageError: the folder or prefix cannot be listed.
    """
    if fsys.is_s3(uri):
        yield from _objects(uri, storage)
        return
    page: list[FileInfo] = []
    with fsys.storage_errors(uri, "list"):
        tree = _Tree(os.path.realpath(uri), storage.retry_s, notes or FolderNotes())
        for info in tree.files(uri, {_identity(uri)}):
            page.append(info)
            if len(page) == _PAGE:
                yield page
                page = []
    yield page


@dataclass(frozen=True)
class _Tree:
    """A folder that is listed: its real path, the seconds that its requests are repeated for, and its notes."""

    top: str
    retry_s: float
    notes: FolderNotes

    def files(self, folder: str, above: set[_Identity]) -> Iterator[FileInfo]:
        """Yield the files below a folder, sorted by path; ``above`` identifies it and those around it."""
        try:
            entries = retrying(partial(_entries, folder), folder, "list", self.retry_s)
        except PermissionError:
            if os.path.realpath(folder) == self.top:
                raise
            self.notes.denied.append(folder)
            return
        for path, info in entries:
            if info is not None:
                yield info
            elif not os.path.islink(path):
                yield from self.files(path, {*above, _identity(path)})
            elif (target := _identity(path)) in above:
                self.notes.loops.append(path)
            else:
                is_inside = f"{os.path.realpath(path)}/".startswith(f"{self.top}/")
                (self.notes.inside if is_inside else self.notes.outside).append(path)
                yield from self.files(path, {*above, target})


def _identity(path: str) -> _Identity:
    state = os.stat(path)
    return state.st_dev, state.st_ino


def _entries(folder: str) -> list[tuple[str, FileInfo | None]]:
    """Return the path of each folder (with None) and file in a folder, sorted as they are within whole paths."""
    with os.scandir(folder) as iterator:
        entries = list(iterator)
    # With the slash, names sort as they do within whole paths: "a-b/c" comes before "a/b".
    folders = {entry.name for entry in entries if _is_folder(entry)}
    entries.sort(key=lambda entry: f"{entry.name}/" if entry.name in folders else entry.name)
    result: list[tuple[str, FileInfo | None]] = []
    for entry in entries:
        if entry.name in folders:
            result.append((entry.path, None))
            continue
        try:
            state = entry.stat()
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ELOOP}:
                raise
            # A link that leads nowhere stays in the listing, so that it is recorded as a failure of its row.
            state = entry.stat(follow_symlinks=False)
        result.append((entry.path, FileInfo(entry.path, state.st_size, fsys.file_etag(state))))
    return result


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _objects(uri: str, storage: StorageConfig) -> Iterator[list[FileInfo]]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    with listing_errors(uri, "list"):
        check_listing(bucket, prefix, storage)
        source = Bucket(bucket, storage)
        prefixes = _sub_prefixes(source, prefix)
        yield from _pages(source, prefix) if prefixes is None else _in_order(source, prefixes)


def _sub_prefixes(source: Bucket, prefix: str) -> list[str] | None:
    """Split a prefix into sub-prefixes that can be listed in parallel, sorted; None if it cannot be split."""
    prefixes = [prefix]
    for _ in range(_MAX_DEPTH):
        deeper = []
        for parent in prefixes:
            if _is_flat(source, parent):
                deeper.append(parent)
                continue
            listed = source.ask(parent, "list", partial(S3Store.list_with_delimiter, prefix=parent))
            folders = [f"{folder}/" for folder in sorted(listed["common_prefixes"])]
            # Objects and folders side by side would have to be merged by path: such a prefix is not split.
            deeper += folders if folders and not listed["objects"] else [parent]
        if deeper == prefixes or len(deeper) > _MAX_PREFIXES:
            break
        prefixes = deeper
        if len(prefixes) >= _LIST_THREADS:
            break
    return sorted(prefixes) if len(prefixes) > 1 else None


def _is_flat(source: Bucket, prefix: str) -> bool:
    """Return True if the first page of a prefix has objects directly below it.

    ``list_with_delimiter`` would return all of those objects in one list.
    """
    first = source.ask(prefix, "list", lambda store: next(iter(store.list(prefix, chunk_size=_PAGE)), []))
    return any("/" not in item["path"].removeprefix(prefix) for item in first)


def _in_order(source: Bucket, prefixes: list[str]) -> Iterator[list[FileInfo]]:
    """Yield the pages of each prefix in turn, while the next prefixes are listed in threads."""
    stop = threading.Event()
    queues: deque[queue.Queue[Any]] = deque()
    remaining = iter(prefixes)
    with ThreadPoolExecutor(_LIST_THREADS) as pool:
        try:
            while True:
                while len(queues) < _LIST_THREADS and (prefix := next(remaining, None)) is not None:
                    queues.append(queue.Queue(_PAGES_AHEAD))
                    pool.submit(_list_into, queues[-1], source, prefix, stop)
                if not queues:
                    return
                while (page := queues[0].get()) is not None:
                    if isinstance(page, BaseException):
                        raise page
                    yield page
                queues.popleft()
        finally:
            stop.set()


def _list_into(pages: "queue.Queue[Any]", source: Bucket, prefix: str, stop: threading.Event) -> None:
    """Put the pages of a prefix into a queue, then None; or, if listing fails, the error."""

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                pages.put(item, timeout=1)
                return
            except queue.Full:
                continue

    try:
        for page in _pages(source, prefix):
            put(page)
            if stop.is_set():
                return
    except BaseException as error:  # noqa: BLE001 (`_in_order`, which waits for the queue, raises it)
        put(error)
        return
    put(None)


def _pages(source: Bucket, prefix: str) -> Iterator[list[FileInfo]]:
    """Yield the objects below a prefix; a listing that breaks off is continued after its last page."""
    pages = last = None

    def next_page(store: S3Store) -> Any:
        nonlocal pages
        # The iterator makes the requests, and is of no use after one has failed.
        current, pages = pages, None
        current = iter(store.list(prefix, offset=last, chunk_size=_PAGE)) if current is None else current
        page = next(current, None)
        pages = current
        return page

    while (page := source.ask(prefix, "list", next_page)) is not None:
        last = page[-1]["path"] if page else last
        # Some tools create empty objects "folder/" as placeholders of folders; they are not files.
        yield [to_file_info(source.name, item) for item in page if not item["path"].endswith("/")]
