"""Rows of image sets given as a folder, S3 prefix or archive: one row per image, its parent folder is the label.

Reads listings and the directories of archives, not images; rows are spooled to temporary files.
"""

import posixpath
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from synthscale.config import Config, StorageConfig
from synthscale.errors import InputError
from synthscale.generator_names import path_name
from synthscale.ingest.archives import ARCHIVE_READERS, Archive, read_members
from synthscale.ingest.dataset import Dataset
from synthscale.ingest.spool import RunningDigest, Spool
from synthscale.storage import filesystems as fsys
from synthscale.storage.filesystems import FileInfo
from synthscale.storage.listing import list_pages
from synthscale.tables.image_formats import SUFFIXES
from synthscale.tables.schemas import REAL, SYNTHETIC


def from_folders(config: Config) -> Dataset:
    """Return the rows of the real set and of each synthetic set.

    Raises:
        InputError: a set does not exist or contains no images, or one set's folder is inside another's.
        StorageError: a folder or archive cannot be read.
    """
    assert config.real is not None
    sets = [_ImageSet(REAL, None, fsys.absolute(config.real))]
    sets += [_ImageSet(SYNTHETIC, name, fsys.absolute(uri)) for name, uri in config.synthetic.items()]
    _check_not_nested({image_set.top for image_set in sets})
    digest, notes = RunningDigest("folders"), list[str]()
    with Spool() as spool:
        for image_set in sets:
            notes += _read_set(image_set, config.storage, spool, digest)
        return Dataset(spool.rows(), digest.text(), notes=notes)


@dataclass(frozen=True)
class _ImageSet:
    """Class, generator (None for real images) and absolute folder, prefix or archive of a set."""

    kind: str
    generator: str | None
    top: str

    @property
    def name(self) -> str:
        return self.generator or REAL

    def rows(self, columns: dict[str, Any]) -> pa.Table:
        """Return source columns as a table, with ids prefixed by the set's name, and class and generator added."""
        n = len(columns["id"])
        return pa.table(
            {
                **columns,
                "id": [f"{path_name(self.name)}/{path}" for path in columns["id"]],
                "real_or_synthetic": pa.array([self.kind] * n, pa.string()),
                "generator": pa.array([self.generator] * n, pa.string()),
            }
        )


def _read_set(image_set: _ImageSet, storage: StorageConfig, spool: Spool, digest: RunningDigest) -> list[str]:
    """Append a set's rows to the spool and its files to the digest; return notes for the report."""
    archives: list[FileInfo] = []
    images = skipped = 0
    base = image_set.top.removeprefix("s3://").rstrip("/") + "/"
    digest.add([image_set.kind, image_set.generator, image_set.top])
    for page in _pages(image_set.top, storage):
        page_images = [info for info in page if _suffix(info) in SUFFIXES]
        archives += (page_archives := [info for info in page if _suffix(info) in ARCHIVE_READERS])
        skipped += len(page) - len(page_images) - len(page_archives)
        digest.add([info.path, info.size_bytes, info.etag] for info in [*page_images, *page_archives])
        if page_images:
            spool.add(image_set.rows(_columns(image_set.top, base, page_images)))
        images += len(page_images)
    for info in archives:
        relative = info.path.removeprefix(base) if info.path.startswith(base) else posixpath.basename(info.path)
        uri = f"s3://{info.path}" if fsys.is_s3(image_set.top) else info.path
        for columns in read_members(Archive(uri, relative, info.etag), storage):
            spool.add(image_set.rows(columns))
            images += len(columns["id"])
    if not images:
        kinds = ", ".join([*sorted(SUFFIXES), *sorted(ARCHIVE_READERS)])
        raise InputError(f"{image_set.top}: contains no images ({kinds})")
    return [f"{image_set.top}: {skipped:,} files were skipped because they are not images"] if skipped else []


def _pages(top: str, storage: StorageConfig) -> Any:
    """Return pages of the files of a set: its sorted listing, or the archive alone."""
    if _suffix(FileInfo(top, 0, None)) in ARCHIVE_READERS:
        info = fsys.stat_or_none(top, storage)
        if info is None:
            raise InputError(f"{top}: not found")
        return [[info]]
    if not fsys.is_s3(top) and not fsys.is_folder(top, storage):
        raise InputError(f"{top}: no such folder of images")
    return list_pages(top, storage)


def _suffix(info: FileInfo) -> str:
    return posixpath.splitext(info.path)[1].lower()


def _check_not_nested(tops: set[str]) -> None:
    # The same folder may be given for two generators, as a test; checks.py refuses it for real and synthetic.
    for outer in tops:
        for inner in tops:
            if inner.startswith(f"{outer}/"):
                raise InputError(f"{inner}: is inside {outer}, so its images would be counted in both sets")


def _columns(top: str, base: str, images: list[FileInfo]) -> dict[str, Any]:
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
