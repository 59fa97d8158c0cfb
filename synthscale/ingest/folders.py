"""Rows of image sets given as a folder, S3 prefix or archive: one row per image; a folder above it is the label.

Reads listings and the directories of archives, and the first bytes of files whose names do not say what they are;
rows are spooled to temporary files.
"""

import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from synthscale.config import Config, StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.archives import Archive, has_images, read_members
from synthscale.ingest.dataset import Dataset
from synthscale.ingest.file_kinds import ARCHIVE_SUFFIXES, TAKEN, Kind, kind_of_bytes, kinds_of, suffix_of
from synthscale.ingest.folder_labels import FolderLabels, label_at
from synthscale.ingest.intake import Intake, label_notes
from synthscale.ingest.sidecars import Sidecar, joined
from synthscale.ingest.spool import RunningDigest, Spool, concatenated
from synthscale.storage import filesystems as fsys
from synthscale.storage.fetch import read_start
from synthscale.storage.filesystems import FileInfo
from synthscale.storage.listing import FolderNotes, list_pages
from synthscale.tables.faults import RowFault
from synthscale.tables.image_formats import SNIFF_BYTES, readable_formats
from synthscale.tables.schemas import REAL, SYNTHETIC

_SNIFF_THREADS = 32
"""Files whose first bytes are read at a time."""
_OPENED = frozenset({Kind.ARCHIVE, Kind.TABLE})
_TABLES = frozenset({".csv", ".jsonl"})
_CHUNK_ROWS = 65_536
"""Rows whose labels are derived at a time."""


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
    digest, found, stops = RunningDigest("folders"), list[_Found](), [0]
    with Spool() as spool:
        for image_set in sets:
            found.append(own := _read_set(image_set, config.storage, spool, digest))
            stops.append(stops[-1] + own.intake.taken)
        rows = spool.rows()
    parts = []
    for start, stop, own in zip(stops, stops[1:], found, strict=False):
        part = _with_labels(rows.slice(start, stop - start), own.level)
        parts.append(joined(part, own.sidecars, config.storage, own.intake))
    intakes = [own.intake for own in found]
    notes = [*(line for intake in intakes for line in intake.notes()), *label_notes(intakes)]
    return Dataset(concatenated(parts), digest.text(), notes=notes, sets=intakes)


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
                "id": [f"{self.name}/{path}" for path in columns["id"]],
                "real_or_synthetic": pa.array([self.kind] * n, pa.string()),
                "generator": pa.array([self.generator] * n, pa.string()),
            }
        )


@dataclass(frozen=True)
class _Found:
    """What a set gave: its counts, the level of its folder labels, and the tables beside its images."""

    intake: Intake
    level: int
    sidecars: list[Sidecar]


def _read_set(image_set: _ImageSet, storage: StorageConfig, spool: Spool, digest: RunningDigest) -> _Found:
    """Append a set's rows to the spool and its files to the digest."""
    top, intake, labels, folders = (
        image_set.top,
        Intake(image_set.name, image_set.top),
        FolderLabels(),
        FolderNotes(),
    )
    sidecars = list[Sidecar]()
    archives, stated = list[FileInfo](), set[str]()
    base = top.removeprefix("s3://").rstrip("/") + "/"
    digest.add([image_set.kind, image_set.generator, top])
    for page in _pages(top, storage, folders):
        paths = [_relative(info, base) for info in page]
        kinds = _sniffed(page, paths, image_set, storage, intake)
        images, found = page, list[FileInfo]()
        if any(kind is not Kind.IMAGE for kind in kinds):
            _count(intake, kinds, paths)
            images = [info for info, kind in zip(page, kinds, strict=True) if kind in TAKEN]
            found = [info for info, kind in zip(page, kinds, strict=True) if kind in _OPENED]
            archives += found
        intake.found += len(page) - len(found)
        digest.add([info.path, info.size_bytes, info.etag] for info in [*images, *found])
        if images:
            columns = _columns(top, base, images)
            intake.taken += len(images)
            labels.add(columns["id"])
            spool.add(image_set.rows(columns))
    for info in archives:
        uri = f"s3://{info.path}" if fsys.is_s3(top) else info.path
        archive = Archive(uri, _relative(info, base), info.etag)
        if suffix_of(uri) in _TABLES or not has_images(archive, storage):
            sidecars.append(Sidecar(uri, archive.relative))
            continue
        for columns in read_members(archive, storage, intake):
            names = columns["image_filename"].to_pylist()
            if suffix_of(uri) != ".parquet":
                labels.add(names)
            given = zip(columns["label"].to_pylist(), names, strict=True)
            stated |= {label for label, name in given if label is not None and label != label_at(name or "", 1)}
            intake.taken += len(names)
            spool.add(image_set.rows(columns))
    _remark_on_folders(intake, folders, base)
    if not intake.taken:
        raise InputError(_no_images(intake, sidecars))
    source = (
        "folder names" if not stated else "the archives' metadata" + (" and folder names" if labels.names else "")
    )
    intake.set_labels(labels.names | stated, source)
    return _Found(intake, labels.level, sidecars)


def _no_images(intake: Intake, sidecars: list[Sidecar]) -> str:
    formats = ", ".join([*readable_formats(), *sorted(ARCHIVE_SUFFIXES)])
    others = [line.partition("passed over: ")[2] or line for line in intake.notes()]
    if sidecars:
        others.append(f"{len(sidecars):,} tables without a column of images ({sidecars[0].path})")
    found = f"; found {'; '.join(others)}" if others else ""
    return f"{intake.source}: contains no images ({formats}){found}"


def _count(intake: Intake, kinds: list[Kind], paths: list[str]) -> None:
    for kind, path in zip(kinds, paths, strict=True):
        if kind is Kind.RARE:
            intake.count_rare(path)
        elif kind is not Kind.IMAGE and kind not in _OPENED:
            intake.pass_over(kind, path)


def _relative(info: FileInfo, base: str) -> str:
    return info.path.removeprefix(base) if info.path.startswith(base) else posixpath.basename(info.path)


def _pages(top: str, storage: StorageConfig, folders: FolderNotes) -> Iterable[list[FileInfo]]:
    """Return pages of the files of a set: its sorted listing, or the archive alone."""
    if suffix_of(top) in ARCHIVE_SUFFIXES:
        info = fsys.stat_or_none(top, storage)
        if info is not None:
            return [[info]]
        if not fsys.is_folder(top, storage):
            raise InputError(f"{top}: not found")
    if not fsys.is_s3(top) and not fsys.is_folder(top, storage):
        raise InputError(_no_folder(top, storage))
    return list_pages(top, storage, folders)


def _no_folder(top: str, storage: StorageConfig) -> str:
    if not fsys.exists(top, storage):
        return f"{top}: no such folder of images"
    (kind,) = kinds_of([posixpath.basename(top)])
    if kind in {Kind.COMPRESSED_TAR, Kind.ARRAYS}:
        return f"{top}: one of the {kind.value}"
    return f"{top}: no such folder of images, but a file; give its folder, or a .tar, .zip or .parquet of images"


def _sniffed(
    page: list[FileInfo], paths: list[str], image_set: _ImageSet, storage: StorageConfig, intake: Intake
) -> list[Kind]:
    """Return the kinds of a page's files; their first bytes decide where their names do not say it."""
    kinds = kinds_of(paths)
    unknown = [i for i, kind in enumerate(kinds) if kind is Kind.UNKNOWN]
    if not unknown:
        return kinds

    def sniff(i: int) -> Kind:
        size = min(SNIFF_BYTES, page[i].size_bytes)
        try:
            start = read_start(fsys.join(image_set.top, paths[i]), size, storage) if size else b""
        except RowFault:
            # Taken, so that it is recorded as a failure of its row.
            return Kind.IMAGE
        return kind_of_bytes(start)

    result = list(kinds)
    with ThreadPoolExecutor(_SNIFF_THREADS) as pool:
        for i, kind in zip(unknown, pool.map(sniff, unknown), strict=True):
            result[i] = kind
            if kind in TAKEN:
                intake.count_sniffed(paths[i])
    return result


def _remark_on_folders(intake: Intake, folders: FolderNotes, base: str) -> None:
    for paths, words in (
        (folders.outside, "links to folders outside were followed"),
        (folders.inside, "links to other folders inside were followed, whose images are taken twice"),
        (folders.loops, "links to folders that contain them were not followed"),
        (folders.denied, "folders may not be read and were passed over"),
    ):
        for path in paths:
            intake.remark(words, path.removeprefix(base))


def _check_not_nested(tops: set[str]) -> None:
    # The same folder may be given for two sets: scoring a set against itself is a valid test.
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


def _with_labels(rows: pa.Table, level: int) -> pa.Table:
    """Replace the names of containing folders in a set's rows, if its labels are those of folders further up."""
    if level == 1:
        return rows
    labels = list(_labels_at(rows.select(["label", "image_filename"]), level))
    return rows.set_column(rows.column_names.index("label"), "label", pa.chunked_array(labels, pa.string()))


def _labels_at(rows: pa.Table, level: int) -> Iterator[pa.Array]:
    for start in range(0, rows.num_rows, _CHUNK_ROWS):
        labels, names = (column.to_pylist() for column in rows.slice(start, _CHUNK_ROWS).columns)
        yield pa.array(
            [
                label_at(name, level) if name is not None and label == label_at(name, 1) else label
                for label, name in zip(labels, names, strict=True)
            ],
            pa.string(),
        )
