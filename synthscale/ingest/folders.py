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
from synthscale.generator_names import path_name
from synthscale.ingest.archives import Archive, NoImageColumn, read_members
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
    digest = RunningDigest("folders")
    with Spool() as spool:
        readers = [_SetReader(image_set, config.storage, spool, digest) for image_set in sets]
        for reader in readers:
            reader.read()
        rows = spool.rows()
    parts, start = list[pa.Table](), 0
    for reader in readers:
        part = _with_labels(rows.slice(start, reader.intake.taken), reader.labels.level)
        parts.append(joined(part, reader.sidecars, config.storage, reader.intake))
        start += reader.intake.taken
    intakes = [reader.intake for reader in readers]
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
                "id": [f"{path_name(self.name)}/{path}" for path in columns["id"]],
                "real_or_synthetic": pa.array([self.kind] * n, pa.string()),
                "generator": pa.array([self.generator] * n, pa.string()),
            }
        )


class _SetReader:
    """Reads one set: its rows go to a spool, its files to a digest, and what they are to an `Intake`."""

    def __init__(self, image_set: _ImageSet, storage: StorageConfig, spool: Spool, digest: RunningDigest) -> None:
        self.set, self._storage, self._spool, self._digest = image_set, storage, spool, digest
        self.intake, self.labels = Intake(image_set.name, image_set.top), FolderLabels()
        self.sidecars = list[Sidecar]()
        self._base = image_set.top.removeprefix("s3://").rstrip("/") + "/"
        self._stated = set[str]()

    def read(self) -> None:
        """Read the set; raise InputError if it has no images."""
        archives, folders = list[FileInfo](), FolderNotes()
        self._digest.add([self.set.kind, self.set.generator, self.set.top])
        for page in _pages(self.set.top, self._storage, folders):
            archives += self._read_page(page)
        for info in archives:
            self._read_archive(info)
        _remark_on_folders(self.intake, folders, self._base)
        if not self.intake.taken:
            raise InputError(_no_images(self.intake, self.sidecars))
        sources = {"the archives' metadata": self._stated, "folder names": self.labels.names}
        given = " and ".join(name for name, labels in sources.items() if labels)
        self.intake.set_labels(self.labels.names | self._stated, given)

    def _read_page(self, page: list[FileInfo]) -> list[FileInfo]:
        """Take the images of a page of files; return its archives and tables."""
        paths = [_relative(info, self._base) for info in page]
        kinds = _sniffed(page, paths, self.set, self._storage, self.intake)
        images, opened = page, list[FileInfo]()
        if any(kind is not Kind.IMAGE for kind in kinds):
            _count(self.intake, kinds, paths)
            images = [info for info, kind in zip(page, kinds, strict=True) if kind in TAKEN]
            opened = [info for info, kind in zip(page, kinds, strict=True) if kind in _OPENED]
        self.intake.found += len(page) - len(opened)
        self._digest.add([info.path, info.size_bytes, info.etag] for info in [*images, *opened])
        if images:
            columns = _columns(self.set.top, self._base, images)
            self.labels.add(columns["id"])
            self._take(columns)
        return opened

    def _read_archive(self, info: FileInfo) -> None:
        uri = f"s3://{info.path}" if fsys.is_s3(self.set.top) else info.path
        archive = Archive(uri, _relative(info, self._base), info.etag)
        if suffix_of(uri) in _TABLES:
            self.sidecars.append(Sidecar(uri, archive.relative))
            return
        try:
            for columns in read_members(archive, self._storage, self.intake):
                labels, names = (columns[name].to_pylist() for name in ("label", "image_filename"))
                if suffix_of(uri) != ".parquet":
                    self.labels.add(names)
                pairs = zip(labels, names, strict=True)
                self._stated.update(label for label, name in pairs if label and label != label_at(name or "", 1))
                self._take(columns)
        except NoImageColumn:
            self.sidecars.append(Sidecar(uri, archive.relative))
        except InputError:
            if uri == self.set.top:
                raise
            self.intake.remark("archives are damaged; what could be listed was taken", archive.relative)

    def _take(self, columns: dict[str, Any]) -> None:
        self.intake.taken += len(columns["id"])
        self._spool.add(self.set.rows(columns))


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
