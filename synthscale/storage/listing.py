"""Listings of local folders and S3 prefixes, sorted by path, in pages of a few thousand files.

An S3 prefix is split into sub-prefixes that are listed in parallel, so that a large set takes minutes and not
hours. The number of pages that are prefetched is bounded, and the whole listing is never in memory.
"""

import errno
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from obstore.exceptions import InvalidPathError
from obstore.store import S3Store

from synthscale.config import StorageConfig
from synthscale.storage import filesystems as fsys
from synthscale.storage.filesystems import FileInfo
from synthscale.storage.objects import Bucket, check_listing, is_plain_key, listing_errors, to_file_info
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
        for info in tree.files(uri, {tree.identity(uri)}):
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
                yield from self.files(path, {*above, self.identity(path)})
            elif (target := self.identity(path)) in above:
                self.notes.loops.append(path)
            else:
                is_inside = f"{os.path.realpath(path)}/".startswith(f"{self.top}/")
                (self.notes.inside if is_inside else self.notes.outside).append(path)
                yield from self.files(path, {*above, target})

    def identity(self, folder: str) -> _Identity:
        """Return what tells a folder from others, whatever links lead to it."""
        state = retrying(partial(os.stat, folder), folder, "list", self.retry_s)
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
        deeper = [folder for parent in prefixes for folder in _folders(source, parent) or [parent]]
        if deeper == prefixes or len(deeper) > _MAX_PREFIXES:
            break
        prefixes = deeper
        if len(prefixes) >= _LIST_THREADS:
            break
    return sorted(prefixes) if len(prefixes) > 1 else None


def _folders(source: Bucket, prefix: str) -> list[str]:
    """Return the folders directly below a prefix, with trailing slashes.

    Returns:
        An empty list if there are too many of them, or objects beside them, which would have to be merged by path.
    """
    # botocore, unlike obstore, tells the object "folder/" from the object "folder", and lists keys such as "a//b".
    folders: list[str] = []
    request = partial(_list, Prefix=prefix, Delimiter="/", **source.botocore_arguments)
    token: dict[str, str] = {}
    while True:
        page = source.ask_botocore(prefix, "list", partial(request, **token))
        if any(item["Key"] != prefix or item["Size"] > 0 for item in page.get("Contents", ())):
            return []
        folders += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
        if not page.get("NextContinuationToken") or len(folders) > _MAX_PREFIXES:
            return folders
        token = {"ContinuationToken": page["NextContinuationToken"]}


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
    """Yield the objects below a prefix; a listing that breaks off is continued after its last page.

    From the first page on that has keys which obstore cannot express, botocore lists the rest.
    """
    pages = None
    last: str | None = None
    held: list[Any] = []

    def next_page(store: S3Store) -> Any:
        nonlocal pages
        # The iterator makes the requests, and is of no use after one has failed.
        current, pages = pages, None
        current = iter(store.list(prefix, offset=last, chunk_size=_PAGE)) if current is None else current
        page = next(current, None)
        pages = current
        return page

    while is_plain_key(prefix.removesuffix("/")) or not prefix:
        try:
            page = source.ask(prefix, "list", next_page)
        except InvalidPathError:
            break
        if page is None:
            yield [to_file_info(source.name, item) for item in held]
            return
        files = _files_of_page(page, prefix, last, held)
        if files is None:
            break
        last = max([item["path"] for item in page], default=last)
        # The next page says whether an empty object at the end of this one is a placeholder.
        held = files[-1:] if files and files[-1]["size"] == 0 else []
        yield [to_file_info(source.name, item) for item in files[: len(files) - len(held)]]
    yield [to_file_info(source.name, item) for item in held]
    yield from _botocore_pages(source, prefix, last)


def _files_of_page(page: Sequence[Any], prefix: str, last: str | None, held: Sequence[Any]) -> list[Any] | None:
    """Return the objects of a page of obstore, without empty placeholders of folders.

    obstore removes a trailing slash: "a/" is listed as "a". This shows where it is not in S3's order, is outside
    of the prefix, or is the folder of the next object.

    Args:
        page: obstore's metadata of objects.
        prefix: prefix that is listed.
        last: greatest path of the pages before.
        held: an empty object at the end of the page before, or nothing.

    Returns:
        None if an object with content has lost its slash.
    """
    files = list(held)
    for item in page:
        path = item["path"]
        if (last is not None and path <= last) or not path.startswith(prefix):
            if item["size"] > 0:
                return None
            continue
        if files and files[-1]["size"] == 0 and path.startswith(f"{files[-1]['path']}/"):
            files.pop()
        files.append(item)
        last = path
    return files


def _botocore_pages(source: Bucket, prefix: str, after: str | None) -> Iterator[list[FileInfo]]:
    """Yield the objects below a prefix after a key, whatever their keys are."""
    start: dict[str, str] = {} if after is None else {"StartAfter": after}
    while True:
        page = source.ask_botocore(
            prefix, "list", partial(_list, Prefix=prefix, **start, **source.botocore_arguments)
        )
        items = page.get("Contents", [])
        # Placeholders of folders are empty objects whose key ends with a slash; they are not files.
        files = [item for item in items if item["Size"] > 0 or not item["Key"].endswith("/")]
        yield [
            FileInfo(f"{source.name}/{item['Key']}", item["Size"], item.get("ETag", "").strip('"') or None)
            for item in files
        ]
        if not page.get("IsTruncated") or not items:
            return
        start = {"StartAfter": items[-1]["Key"]}


def _list(client: Any, **arguments: Any) -> Any:
    return client.list_objects_v2(**arguments)
