"""Rows of metadata tables: CSV, JSON Lines or Parquet, alone, in a folder, or in a zip as Cleanlab Studio takes.

Reads tables in batches, and the sizes and etags of the files that they name. Rows are spooled to temporary files.
"""

import hashlib
import io
import os
import posixpath
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from synthscale.config import Config, StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.dataset import Dataset, RowFindings, check_columns, table_rows
from synthscale.ingest.file_kinds import is_system
from synthscale.ingest.file_stats import add_file_stats
from synthscale.ingest.foreign_files import TABLE_SUFFIXES
from synthscale.ingest.spool import Spool
from synthscale.ingest.table_columns import IMAGE_COLUMNS, Roles, choose_roles, count_of, find_columns
from synthscale.ingest.table_reader import open_table, table_of
from synthscale.ingest.user_table import EMBEDDED, UserTable
from synthscale.ingest.vector_tables import from_vectors
from synthscale.storage import filesystems as fsys
from synthscale.storage.fetch import zip_uri
from synthscale.storage.run_directory import digest

_HASH_BYTES = 64 * 2**20
"""Bytes of a table hashed at a time."""
_LOOKUP_ROWS = 2**19
"""Rows whose files are looked up in one call: more rows need fewer S3 listings, and as many are in memory."""
_TABLE_NAMES = tuple(
    f"{folder}metadata{suffix}" for folder in ("", "images/") for suffix in (".csv", ".parquet", ".jsonl", ".tsv")
)
"""Tables of a data set's folder, best first."""


def from_zip(uri: str, config: Config) -> Dataset:
    """Return the rows of the metadata table in a zip file of images, the one nearest the root if there are more.

    Raises:
        InputError: the zip file is damaged or contains no ``metadata.csv``, or that table is invalid.
    """
    try:
        # Not through the handle cache of `fetch`: the file may have been replaced since this process last read it.
        with fsys.open_file(uri, config.storage) as file, zipfile.ZipFile(file) as archive:
            # Some Windows programs write backslashes.
            members = {info.filename.replace("\\", "/"): info.filename for info in archive.infolist()}
            wanted = {posixpath.basename(name) for name in _TABLE_NAMES}
            tables = [name for name in members if posixpath.basename(name) in wanted and not is_system(name)]
            if not tables:
                raise InputError(f"{uri}: contains no metadata.csv, metadata.parquet or metadata.jsonl")
            table_name = min(tables, key=lambda name: (name.count("/"), name))
            data = archive.read(members[table_name])
            versions = sorted((info.filename, info.CRC, info.file_size) for info in archive.infolist())
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{uri}: not a readable zip file: {error}") from error
    table = table_of(f"{uri}: {table_name}", lambda: io.BytesIO(data), posixpath.splitext(table_name)[1])
    folder = posixpath.dirname(table_name)

    def locate(top: str, name: str) -> str:
        path = posixpath.join(top, name)
        return zip_uri(uri, members.get(path, path))

    return _from_image_tables(
        [_Part(table, [folder, posixpath.dirname(folder)], locate, members.__contains__, None)],
        digest([uri, versions]),
        config,
        _other_tables(tables, table_name),
    )


def _other_tables(tables: Sequence[str], chosen: str) -> list[str]:
    others = [name for name in tables if name != chosen]
    return [f"{chosen}: is the table; not read: {', '.join(others[:3])}"] if others else []


def from_dataset_folder(uri: str, config: Config) -> Dataset:
    """Return the rows of a folder with a metadata table, or else with Parquet files or one other table.

    Raises:
        InputError: the folder contains neither, or the table or a file is invalid.
    """
    storage = config.storage
    found = [name for name in _TABLE_NAMES if fsys.exists(fsys.join(uri, name), storage)]
    if found:
        dataset = from_table_files([fsys.join(uri, found[0])], config)
        dataset.notes.extend(_other_tables(found, found[0]))
        return dataset
    base = uri.removeprefix("s3://").rstrip("/") + "/"
    files = [i.path for i in fsys.list_files(uri, storage) if not is_system(i.path.removeprefix(base))]
    files = [path for path in files if not posixpath.basename(path).startswith("_")]
    tables = [path for path in files if path.lower().endswith((".parquet", ".pq"))]
    if not tables:
        tables = [path for path in files if path.lower().endswith(TABLE_SUFFIXES)]
        if len(tables) > 1:
            names = ", ".join(path.removeprefix(base) for path in tables[:3])
            raise InputError(f"{uri}: contains several tables ({names}); name one as --manifest")
    if tables:
        return from_table_files([f"s3://{path}" if fsys.is_s3(uri) else path for path in tables], config)
    raise InputError(
        f"{uri}: contains no metadata.csv, metadata.parquet, metadata.jsonl or Parquet files of vectors or images"
    )


def from_table_files(uris: list[str], config: Config) -> Dataset:
    """Return the rows of tables, of images or of vectors; the first one decides which.

    Raises:
        ConfigError: a column of ``input`` does not exist.
        InputError: the suffix is unknown, a table is invalid, or a path leaves the data set's folder.
        StorageError: a table cannot be read.
    """
    storage = config.storage
    tables = [open_table(uri, storage) for uri in uris]
    first = tables[0]
    if first.schema is None:
        # The types of CSV and JSON Lines show only when all rows have been read.
        has_images = bool(IMAGE_COLUMNS & set(first.names)) and "embedding" not in first.names
        is_of_images = has_images and not config.input.feature_columns
        if not is_of_images and "real_or_synthetic" not in first.names:
            check_columns(first.names, first.source, are_images=False)
        # A table of this name lists images: its numbers are no vectors where their column is missing.
        is_metadata = posixpath.splitext(posixpath.basename(uris[0]))[0].lower() == "metadata"
        if is_metadata and not config.input.feature_columns and "embedding" not in first.names:
            is_of_images = True
    else:
        is_of_images = not choose_roles(first.schema, config.input, first.source).features
    if not is_of_images:
        return from_vectors(tables, uris, config)
    parts = []
    for table, uri in zip(tables, uris, strict=True):
        folder = posixpath.dirname(uri)
        exists = partial(_is_file, storage=storage)
        parts.append(_Part(table, [folder, posixpath.dirname(folder)], fsys.join, exists, uri))
    return _from_image_tables(parts, digest([[uri, _content_hash(uri, storage)] for uri in uris]), config, [])


def _is_file(path: str, storage: StorageConfig) -> bool:
    return fsys.exists(path, storage)


class _Part:
    """A table of images, and how the files that it names are found.

    Attributes:
        table: the open table.
        candidates: folders that its paths may be relative to, best first.
        locate: returns the URI of a path below one of these folders.
        exists: returns True if there is a file at a folder joined with a path.
        uri: of the table, if it is a file of its own and not a member of a zip file.
    """

    def __init__(
        self,
        table: UserTable,
        candidates: list[str],
        locate: Callable[[str, str], str],
        exists: Callable[[str], bool],
        uri: str | None,
    ) -> None:
        self.table, self.candidates, self.locate, self.exists, self.uri = table, candidates, locate, exists, uri
        self.top: str | None = None

    def find_top(self, rows: pa.Table) -> str:
        """Return the folder that paths are relative to: the first candidate that has one of the first files."""
        if self.top is None:
            column = "image_filename" if "image_filename" in rows.column_names else "uri"
            values = rows.column(column).slice(0, 3).to_pylist() if column in rows.column_names else []
            names = [str(value).replace("\\", "/") for value in values if isinstance(value, str) and value]
            found = (top for name in names for top in self.candidates if self.exists(posixpath.join(top, name)))
            self.top = next(found, self.candidates[0])
        return self.top


def _from_image_tables(parts: list[_Part], content: str, config: Config, notes: list[str]) -> Dataset:
    waiting: list[pa.Table] = []
    with Spool() as spool:
        for part in parts:
            check_columns(part.table.names, part.table.source, are_images=True)
            findings = RowFindings(part.table.source, part.table.place)
            for rows in _image_rows(part, findings, config):
                waiting.append(rows)
                if sum(map(len, waiting)) >= _LOOKUP_ROWS:
                    spool.add_all(add_file_stats(waiting, config.storage))
                    waiting = []
            roles = _image_roles(part.table, config)
            notes += part.table.notes_of_lines(findings.rows, config.max_failure_fraction)
            notes += [*part.table.notes, roles.note(part.table.source)]
            notes += findings.notes(config.max_failure_fraction)
        spool.add_all(add_file_stats(waiting, config.storage))
        return Dataset(spool.rows(), content, is_table=True, notes=notes)


def _image_roles(table: UserTable, config: Config) -> Roles:
    ignored = find_columns(config.input.ignore_columns, table.names, "ignore_columns")
    roles = Roles([], [name for name in table.names if name not in ignored])
    for name in table.names:
        if name in ignored:
            roles.ignore(name, "input.ignore_columns")
        elif name.startswith("Unnamed: "):
            roles.ignore(name, "row numbers")
    return roles


def _image_rows(part: _Part, findings: RowFindings, config: Config) -> Iterator[pa.Table]:
    in_cache = 0
    for batch in part.table.batches():
        rows, embedded = _split_image_column(batch, findings, part)
        top = part.find_top(rows)
        first_row = findings.rows
        converted = table_rows(
            rows,
            findings,
            _image_roles(part.table, config),
            partial(part.locate, top),
            lambda name, top=top: part.exists(posixpath.join(top, name)),  # type: ignore[misc]
            embedded,
        )
        if part.uri is not None and not fsys.is_s3(part.uri):
            in_cache += _check_links(converted, top, part.table, first_row)
        yield converted
    if in_cache:
        part.table.notes.append(
            f"{part.table.source}: {count_of(in_cache, 'link')} into the cache that the table is in: followed"
        )


def _split_image_column(
    rows: pa.Table, findings: RowFindings, part: _Part
) -> tuple[pa.Table, pa.ChunkedArray | None]:
    """Replace a column of structs by the paths in them; return the URIs of the images that the table contains.

    Raises:
        InputError: images are embedded in a format that cannot hold them.
    """
    if EMBEDDED in rows.column_names:
        embedded = rows.column(EMBEDDED)
        rows = rows.drop_columns([EMBEDDED])
        if "id" not in rows.column_names:
            # Names of embedded images are often the same in several classes.
            numbers = pa.array(range(findings.rows, findings.rows + len(rows))).cast(pa.string())
            prefix = posixpath.basename(part.uri or "")
            rows = rows.append_column("id", pc.binary_join_element_wise(prefix, numbers, "/"))
        return rows, embedded
    if "image_filename" in rows.column_names and pa.types.is_struct(rows.column("image_filename").type):
        column = rows.column("image_filename")
        fields = [field.name for field in column.type]
        if "path" not in fields:
            raise InputError(
                f"{part.table.source}: the images have the fields {', '.join(fields)}, but none called path"
            )
        at = rows.column_names.index("image_filename")
        rows = rows.set_column(at, "image_filename", pc.struct_field(column, "path"))
    return rows, None


def _content_hash(uri: str, storage: StorageConfig) -> str:
    content = hashlib.blake2b(digest_size=16)
    with fsys.storage_errors(uri, "read"), fsys.open_file(uri, storage) as file:
        while piece := file.read(_HASH_BYTES):
            content.update(piece)
    return content.hexdigest()


def _check_links(rows: pa.Table, top: str, table: UserTable, first_row: int) -> int:
    """Check that no file below the data set's folder is a link to a file outside it.

    Returns:
        The number of links into the cache of Hugging Face that the folder itself is in: its ``snapshots`` consist
        of links to ``blobs`` beside them.

    Raises:
        InputError: a link leaves the folder, and its cache.
    """
    real_top = os.path.realpath(top) + os.sep
    before, separator, _ = top.partition("/snapshots/")
    cache = os.path.realpath(f"{before}/blobs") + os.sep if separator else None
    in_cache = 0
    for row, uri in enumerate(rows.column("uri").to_pylist(), first_row):
        if uri is None or not uri.startswith(top + "/"):
            continue
        target = os.path.realpath(uri)
        if target.startswith(real_top):
            continue
        if cache is not None and target.startswith(cache):
            in_cache += 1
            continue
        raise InputError(
            f"{table.source}: {table.place(row)}: {uri.removeprefix(top + '/')!r} is a link to a file "
            f"outside {top}"
        )
    return in_cache
