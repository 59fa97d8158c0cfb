"""Sizes and etags of the files named by a metadata table: ``stat`` for local files, listings or HEAD for S3.

Reads file metadata only and writes nothing. A list request returns up to 1,000 objects, so keys are sorted and
each listing starts at the next key to look up. After a page with few of the keys, the next ones are looked up by
HEAD requests, one each.
"""

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
from botocore.exceptions import ClientError
from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError
from obstore.store import S3Store

from synthscale.config import StorageConfig
from synthscale.storage import filesystems as fsys
from synthscale.storage.fetch import containing_file
from synthscale.storage.filesystems import FileInfo
from synthscale.storage.objects import Bucket, check_listing, is_denied, listing_errors, to_file_info
from synthscale.storage.retries import retrying

_THREADS = 32
"""Concurrent requests to a bucket; each thread looks up a contiguous range of the sorted keys."""
_PAGE = 1000
"""Objects per list request, the most that S3 returns."""
_MIN_HITS = 10
"""A page with fewer of the wanted keys than this is followed by HEAD requests."""
_HEAD_KEYS = 100
"""Number of keys looked up by HEAD requests before another listing is tried."""


def add_file_stats(tables: Sequence[pa.Table], storage: StorageConfig) -> list[pa.Table]:
    """Fill in the columns ``size_bytes`` and ``etag`` of manifest rows.

    Args:
        tables: rows with a column ``uri``. If they are not sorted by URI, more rows per call need fewer listings.
        storage: S3 settings.

    Returns:
        The tables. Both values are null if a file does not exist; an archive member has the etag of its archive
        and no size.

    Raises:
        StorageError: a bucket does not exist or cannot be reached.
    """
    infos = stat_files(
        {containing_file(uri) for rows in tables for uri in rows.column("uri").to_pylist() if uri}, storage
    )
    return [_fill_in(rows, infos) for rows in tables]


def _fill_in(rows: pa.Table, info_by_uri: Mapping[str, FileInfo]) -> pa.Table:
    uris = rows.column("uri").to_pylist()
    files = ["" if uri is None else containing_file(uri) for uri in uris]
    infos = [info_by_uri.get(file) for file in files]
    # An archive member gets the archive's etag, since it changes with the archive, but not the archive's size.
    sizes = [
        None if info is None or file != uri else info.size_bytes
        for uri, file, info in zip(uris, files, infos, strict=True)
    ]
    columns = {
        "size_bytes": pa.array(sizes, pa.int64()),
        "etag": pa.array([None if info is None else info.etag for info in infos], pa.string()),
    }
    for name, column in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows


def stat_files(uris: set[str], storage: StorageConfig) -> dict[str, FileInfo]:
    """Look up the size and etag of local files and S3 objects.

    Returns:
        FileInfo by URI. Files that do not exist or may not be read are left out.

    Raises:
        StorageError: a bucket does not exist or cannot be reached.
    """
    infos: dict[str, FileInfo] = {}
    buckets: dict[str, list[str]] = {}
    for uri in sorted(uris):
        if fsys.is_s3(uri):
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            if key:
                buckets.setdefault(bucket, []).append(key)
        elif (info := _stat_local(uri, storage.retry_s)) is not None:
            infos[uri] = info
    for bucket, keys in buckets.items():
        infos |= {f"s3://{info.path}": info for info in _stat_objects(bucket, keys, storage)}
    return infos


def _stat_local(path: str, retry_s: float) -> FileInfo | None:
    try:
        state = retrying(lambda: os.stat(path), path, "look up", retry_s)
    except (OSError, ValueError):
        return None
    return FileInfo(path, state.st_size, fsys.file_etag(state))


def _stat_objects(bucket: str, keys: list[str], storage: StorageConfig) -> list[FileInfo]:
    """Look up the keys of a bucket, which must be sorted; objects that do not exist are left out."""
    keys_per_thread = -(-len(keys) // _THREADS)
    with listing_errors(f"s3://{bucket}/{keys[0]}", "look up"):
        look_up = _look_up_by_head if _is_listing_denied(bucket, keys[0], storage) else _look_up_by_listing
        source = Bucket(bucket, storage)
        with ThreadPoolExecutor(_THREADS) as pool:
            parts = [keys[start : start + keys_per_thread] for start in range(0, len(keys), keys_per_thread)]
            return [info for infos in pool.map(lambda part: look_up(source, part), parts) for info in infos]


def _is_listing_denied(bucket: str, key: str, storage: StorageConfig) -> bool:
    """Return True if the credentials do not permit listing the key's folder; raise other S3 errors."""
    try:
        check_listing(bucket, key.rpartition("/")[0] or None, storage)
    except (BaseError, ClientError) as error:
        if not is_denied(error):
            raise
        return True
    return False


def _look_up_by_head(source: Bucket, keys: list[str]) -> list[FileInfo]:
    """Look up keys with one HEAD request each; objects that do not exist or may not be read are left out."""
    infos = []
    for key in keys:
        try:
            infos.append(to_file_info(source.name, source.ask(key, "look up", partial(S3Store.head, path=key))))
        except (FileNotFoundError, PermissionDeniedError, ValueError):
            # The cause is recorded as a failure of the row when embed reads the object.
            continue
    return infos


def _look_up_by_listing(source: Bucket, keys: list[str]) -> list[FileInfo]:
    """Look up sorted keys with listings that start at the next key, and HEAD requests where keys are sparse."""
    infos: list[FileInfo] = []
    folder = os.path.commonprefix([keys[0], keys[-1]]).rpartition("/")[0]  # noqa: RUF071
    position = 0
    while position < len(keys):
        try:
            first_page = partial(_first_page, folder=folder or None, offset=_before(keys[position]))
            page = source.ask(keys[position], "look up", first_page)
            stop = bisect_right(keys, page[-1]["path"], position) if len(page) == _PAGE else len(keys)
            listed = {item["path"]: item for item in page}
        except (ValueError, InvalidPathError):
            # obstore refuses keys such as a//b, those that are looked for and those that are listed.
            stop, listed = position, {}
        hits = [listed[key] for key in keys[position:stop] if key in listed]
        infos += [to_file_info(source.name, item) for item in hits]
        position = stop
        if len(hits) < _MIN_HITS:
            infos += _look_up_by_head(source, keys[position : position + _HEAD_KEYS])
            position += _HEAD_KEYS
    return infos


def _first_page(store: S3Store, folder: str | None, offset: str) -> Any:
    return next(iter(store.list(folder, offset=offset, chunk_size=_PAGE)), [])


def _before(key: str) -> str:
    """Return a listing offset just below a key: S3 lists the keys after an offset, without the offset itself.

    The last character of the key is replaced by its predecessor, followed by the highest code point.
    """
    # Character "/" precedes "0" but is skipped: obstore refuses keys that begin with "/" or contain "//".
    last = ord(key[-1]) - (2 if key[-1] == "0" else 1)
    return key[:-1] + (chr(last) + "\U0010ffff" if 0x20 <= last < 0xD800 else "")
