"""Sizes and etags of files that a table names: by a look at the disk, or by listings of S3 where they lie.

A listing tells of a thousand objects at once. So the names are put in order, and each listing begins at the next
name that is wanted; where one holds few of them, those that follow are asked for one by one.
"""

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from obstore.exceptions import BaseError, PermissionDeniedError
from obstore.store import S3Store

from synthscale.config import StorageConfig
from synthscale.storage import filesystems as fsys
from synthscale.storage.fetch import containing_file
from synthscale.storage.filesystems import FileInfo
from synthscale.storage.objects import bucket_client, check_listing, is_denied, listing_errors, to_file_info

_THREADS = 32
_PAGE = 1000
_FEW = 10
_ONE_BY_ONE = 100


def with_states(tables: Sequence[pa.Table], storage: StorageConfig) -> list[pa.Table]:
    """Complete tables of the manifest with ``size_bytes`` and ``etag``: null where there is no such file.

    More rows at once need fewer listings, where their order is not that of the names.

    Raises StorageError when a bucket cannot be asked, or does not exist.
    """
    found = states({containing_file(uri) for rows in tables for uri in rows.column("uri").to_pylist()}, storage)
    return [_completed(rows, found) for rows in tables]


def _completed(rows: pa.Table, found: Mapping[str, FileInfo]) -> pa.Table:
    uris = rows.column("uri").to_pylist()
    files = [containing_file(uri) for uri in uris]
    infos = [found.get(file) for file in files]
    # A member of an archive changes with it, and has a size of its own.
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


def states(uris: set[str], storage: StorageConfig) -> dict[str, FileInfo]:
    """Return what is known of files on a disk and objects of S3, by URI, without those that are not there."""
    found: dict[str, FileInfo] = {}
    buckets: dict[str, list[str]] = {}
    for uri in sorted(uris):
        if fsys.is_s3(uri):
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            if key:
                buckets.setdefault(bucket, []).append(key)
        elif (info := _on_disk(uri)) is not None:
            found[uri] = info
    for bucket, keys in buckets.items():
        found |= {f"s3://{info.path}": info for info in _in_bucket(bucket, keys, storage)}
    return found


def _on_disk(path: str) -> FileInfo | None:
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return FileInfo(path, state.st_size, fsys.file_etag(state))


def _in_bucket(bucket: str, keys: list[str], storage: StorageConfig) -> list[FileInfo]:
    """Return what is known of keys, which ascend."""
    share = -(-len(keys) // _THREADS)
    with listing_errors(f"s3://{bucket}/{keys[0]}", "look at"):
        look = _one_by_one if _is_listing_denied(bucket, keys[0], storage) else _leap
        store = bucket_client(bucket, storage)
        with ThreadPoolExecutor(_THREADS) as pool:
            parts = [keys[start : start + share] for start in range(0, len(keys), share)]
            return [info for infos in pool.map(lambda part: look(store, bucket, part), parts) for info in infos]


def _is_listing_denied(bucket: str, key: str, storage: StorageConfig) -> bool:
    """Tell whether objects may be read and not listed."""
    try:
        check_listing(bucket, key.rpartition("/")[0] or None, storage)
    except (BaseError, ValueError) as error:
        if isinstance(error, BaseError) and not is_denied(error):
            raise
        return isinstance(error, BaseError)
    return False


def _one_by_one(store: S3Store, bucket: str, keys: list[str]) -> list[FileInfo]:
    found = []
    for key in keys:
        try:
            found.append(to_file_info(bucket, store.head(key)))
        except (FileNotFoundError, PermissionDeniedError, ValueError):
            # Why it cannot be read is told when it is.
            continue
    return found


def _leap(store: S3Store, bucket: str, keys: list[str]) -> list[FileInfo]:
    """Look keys up, which ascend, by listings that begin at the next one, or one by one where they lie apart."""
    found: list[FileInfo] = []
    folder = os.path.commonprefix([keys[0], keys[-1]]).rpartition("/")[0]  # noqa: RUF071
    at = 0
    while at < len(keys):
        try:
            page: Any = next(iter(store.list(folder or None, offset=_before(keys[at]), chunk_size=_PAGE)), [])
            stop = bisect_right(keys, page[-1]["path"], at) if len(page) == _PAGE else len(keys)
            there = {item["path"]: item for item in page}
        except ValueError:
            # obstore knows no names like a//b.
            stop, there = at, {}
        hits = [there[key] for key in keys[at:stop] if key in there]
        found += [to_file_info(bucket, item) for item in hits]
        at = stop
        if len(hits) < _FEW:
            found += _one_by_one(store, bucket, keys[at : at + _ONE_BY_ONE])
            at += _ONE_BY_ONE
    return found


def _before(key: str) -> str:
    """Return a text that sorts before a key and, of all names that are used, after any smaller one."""
    # A name that begins with / , or holds two, is none to obstore.
    last = ord(key[-1]) - (2 if key[-1] == "0" else 1)
    return key[:-1] + (chr(last) + "\U0010ffff" if 0x20 <= last < 0xD800 else "")
