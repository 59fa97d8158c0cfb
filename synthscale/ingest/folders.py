"""Rows of each set's folder, prefix or archive: one row a picture, its sub-folder the label."""

import posixpath
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from synthscale.config import Config, StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.archives import ARCHIVES, Archive, members_of
from synthscale.ingest.dataset import Dataset
from synthscale.ingest.spool import RunningDigest, Spool
from synthscale.storage import filesystems as fsys
from synthscale.storage.filesystems import FileInfo
from synthscale.storage.listing import list_pages
from synthscale.tables.image_formats import SUFFIXES
from synthscale.tables.schemas import REAL, SYNTHETIC


def from_folders(config: Config) -> Dataset:
    """Return the rows of the real set and each synthetic one; raise InputError when one holds no images."""
    assert config.real is not None
    sets = [_Set(REAL, None, fsys.absolute(config.real))]
    sets += [_Set(SYNTHETIC, name, fsys.absolute(uri)) for name, uri in config.synthetic.items()]
    _refuse_nested({own.top for own in sets})
    digest, notes = RunningDigest("folders"), list[str]()
    with Spool() as spool:
        for own in sets:
            notes += _read(own, config.storage, spool, digest)
        return Dataset(spool.rows(), digest.text(), notes=notes)


@dataclass(frozen=True)
class _Set:
    kind: str
    generator: str | None
    top: str

    @property
    def name(self) -> str:
        return self.generator or REAL

    def rows(self, columns: dict[str, Any]) -> pa.Table:
        """Complete ``columns`` (id without the set's name, uri, label, ...) to the manifest's."""
        n = len(columns["id"])
        return pa.table(
            {
                **columns,
                "id": [f"{self.name}/{path}" for path in columns["id"]],
                "real_or_synthetic": pa.array([self.kind] * n, pa.string()),
                "generator": pa.array([self.generator] * n, pa.string()),
            }
        )


def _read(own: _Set, storage: StorageConfig, spool: Spool, digest: RunningDigest) -> list[str]:
    """Put a set's rows into the spool; return what a person should know of it."""
    archives: list[FileInfo] = []
    images = passed_over = 0
    base = own.top.removeprefix("s3://").rstrip("/") + "/"
    digest.add([own.kind, own.generator, own.top])
    for page in _pages(own.top, storage):
        found = [info for info in page if _suffix(info) in SUFFIXES]
        archives += (held := [info for info in page if _suffix(info) in ARCHIVES])
        passed_over += len(page) - len(found) - len(held)
        digest.add([info.path, info.size_bytes, info.etag] for info in [*found, *held])
        if found:
            spool.add(own.rows(_of_files(own.top, base, found)))
        images += len(found)
    for info in archives:
        relative = info.path.removeprefix(base) if info.path.startswith(base) else posixpath.basename(info.path)
        uri = f"s3://{info.path}" if fsys.is_s3(own.top) else info.path
        for columns in members_of(Archive(uri, relative, info.etag), storage):
            spool.add(own.rows(columns))
            images += len(columns["id"])
    if not images:
        kinds = ", ".join([*sorted(SUFFIXES), *sorted(ARCHIVES)])
        raise InputError(f"{own.top}: holds no images ({kinds})")
    return [f"{own.top}: {passed_over} files that are no images were passed over"] if passed_over else []


def _pages(top: str, storage: StorageConfig) -> Any:
    if _suffix(FileInfo(top, 0, None)) in ARCHIVES:
        info = fsys.stat_or_none(top, storage)
        if info is None:
            raise InputError(f"{top}: not found")
        return [[info]]
    if not fsys.is_s3(top) and not fsys.is_folder(top, storage):
        raise InputError(f"{top}: no such folder of images")
    return list_pages(top, storage)


def _suffix(info: FileInfo) -> str:
    return posixpath.splitext(info.path)[1].lower()


def _refuse_nested(tops: set[str]) -> None:
    # The same folder twice is a set scored against itself, which is a fair question.
    for outer in tops:
        for inner in tops:
            if inner.startswith(f"{outer}/"):
                raise InputError(f"{inner}: lies in {outer}, so its images would be counted in both sets")


def _of_files(top: str, base: str, images: list[FileInfo]) -> dict[str, Any]:
    relative = [info.path.removeprefix(base) for info in images]
    parents = [posixpath.basename(posixpath.dirname(path)) or None for path in relative]
    return {
        "id": relative,
        "uri": [fsys.join(top, path) for path in relative],
        "label": pa.array(parents, pa.string()),
        "image_filename": pa.array(relative, pa.string()),
        "size_bytes": pa.array([info.size_bytes for info in images], pa.int64()),
        "etag": pa.array([info.etag for info in images], pa.string()),
    }
