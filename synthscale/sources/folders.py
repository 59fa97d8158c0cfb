"""Rows of image folders: one row a picture, its sub-folder the label."""

import os
import posixpath
from typing import Any

import pyarrow as pa

from synthscale import filesystems as fsys
from synthscale.config import Config, StorageConfig
from synthscale.errors import InputError
from synthscale.images import SUFFIXES
from synthscale.schemas import REAL, SYNTHETIC
from synthscale.sources.rows import Dataset
from synthscale.storage import digest


def from_folders(config: Config) -> Dataset:
    """Return the rows of the real folder and each synthetic one; raise InputError when one holds no images."""
    assert config.real is not None
    sets = [(REAL, None, config.real), *((SYNTHETIC, name, uri) for name, uri in config.synthetic.items())]
    tables, listing, notes = [], [], []
    for kind, generator, uri in sets:
        top = fsys.absolute(uri)
        if not fsys.is_folder(top, config.storage):
            raise InputError(f"{top}: no such folder of images")
        found = fsys.list_files(top, config.storage)
        images = [info for info in found if posixpath.splitext(info.path)[1].lower() in SUFFIXES]
        if not images:
            raise InputError(f"{top}: holds no images ({', '.join(sorted(SUFFIXES))})")
        if len(images) < len(found):
            notes.append(f"{top}: {len(found) - len(images)} files that are no images were passed over")
        tables.append(_folder_rows(top, images, kind, generator))
        listing.append([kind, generator, top, [[i.path, i.size_bytes, _state(i, config.storage)] for i in images]])
    _refuse_nested({fsys.absolute(uri) for _, _, uri in sets})
    return Dataset(pa.concat_tables(tables), digest(listing), notes=notes)


def _refuse_nested(tops: set[str]) -> None:
    # The same folder twice is a set scored against itself, which is a fair question.
    for outer in tops:
        for inner in tops:
            if inner.startswith(f"{outer}/"):
                raise InputError(f"{inner}: lies in {outer}, so its images would be counted in both sets")


def _folder_rows(top: str, images: list[fsys.FileInfo], kind: str, generator: str | None) -> pa.Table:
    prefix = top.removeprefix("s3://").rstrip("/") + "/"
    relative = [info.path.removeprefix(prefix) for info in images]
    parents = [posixpath.basename(posixpath.dirname(path)) or None for path in relative]
    n = len(images)
    return pa.table(
        {
            "id": [f"{generator or REAL}/{path}" for path in relative],
            "uri": [fsys.join(top, path) for path in relative],
            "real_or_synthetic": pa.array([kind] * n, pa.string()),
            "label": pa.array(parents, pa.string()),
            "generator": pa.array([generator] * n, pa.string()),
            "image_filename": relative,
            "size_bytes": pa.array([info.size_bytes for info in images], pa.int64()),
            "etag": pa.array([info.etag for info in images], pa.string()),
        }
    )


def _state(info: fsys.FileInfo, storage: StorageConfig) -> Any:
    """What tells whether a listed file has changed: its etag on S3, its modification time on a disk."""
    return info.etag if info.etag is not None else os.stat(info.path).st_mtime_ns
