"""Read a user's table in batches: CSV in its dialects, JSON Lines or Parquet, with canonical names of columns.

Reads files on disk or S3, and members of zip files through their opener; writes nothing. What is read otherwise
than it is written is said in notes.
"""

import csv
import io
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.table_columns import (
    SPECIAL_COLUMNS,
    canonical_names,
    class_names,
    count_of,
    is_number,
    name_list,
)
from synthscale.storage import filesystems as fsys
from synthscale.storage.fetch import parquet_uri
from synthscale.tables.image_formats import GIT_LFS_POINTER

_BLOCK_BYTES = 64 * 2**20
"""Bytes of a CSV or JSON Lines table parsed at a time (64 MiB).

A line must fit into a block.
"""
_BATCH_ROWS = 65_536
"""Rows per batch of a Parquet table."""
_SNIFF_BYTES = 2**20
"""Bytes at the beginning of a table that show its encoding, separator and decimal point (1 MiB)."""
_NO_OBJECT = re.compile(rb"^[ \t\r]*[^{\s]|\}[ \t\r]*n", re.MULTILINE)
"""A line that begins with no object, or a null after one: Arrow crashes on a null in place of an object."""
EMBEDDED = "\0embedded"
"""Column that a batch has besides those of a table whose images are within it: their URIs, or null."""
_TEXT_COLUMNS = frozenset(SPECIAL_COLUMNS) - {"embedding"} | {"file_name", "image"}
"""Columns that are read as text whatever their values look like."""
_PROMOTIONS = {pa.null(): pa.float64(), pa.int64(): pa.float64()}
"""Type to try next for a CSV column with a later value that its first block did not lead to expect; else text."""


@dataclass
class UserTable:
    """An open table.

    Attributes:
        source: name for messages: its URI, or that of a zip file and its member.
        names: canonical names of the columns.
        schema: types by canonical name, where the format declares them (Parquet); else None.
        batches: yields all rows, in order, as tables with the columns `names`, or with those of the given names
            that the table has. A column may have another type in another batch of JSON Lines. Call it as often as
            needed; raises InputError if the table is malformed.
        place: returns where the row of a number, from 0, is: "line 7", as an editor counts, or "row 5" in Parquet.
        notes: messages for the report; complete once all batches have been read.
        left_out: lines of a CSV that have too few or too many values; complete once all batches have been read.
        written: names as the file has them, by canonical name.
    """

    source: str
    names: list[str]
    schema: pa.Schema | None
    batches: Callable[..., Iterator[pa.Table]]
    place: Callable[[int], str]
    notes: list[str] = field(default_factory=list)
    left_out: int = 0
    written: dict[str, str] = field(default_factory=dict)

    def notes_of_lines(self, rows: int, limit: float) -> list[str]:
        """Return a note on the lines that were left out; raise InputError if they are more than a fraction of all.

        Args:
            rows: number of rows that were read.
            limit: largest fraction of lines that may be left out.
        """
        if not self.left_out:
            return []
        text = f"{count_of(self.left_out, 'line')} with more or fewer values than the {len(self.names)} columns"
        if self.left_out > limit * (rows + self.left_out):
            raise InputError(f"{self.source}: {text}; is a separator within values, or are quotes missing?")
        return [f"{self.source}: {text}: left out"]


def open_table(uri: str, storage: StorageConfig) -> UserTable:
    """Open a table file; its suffix says the format.

    Raises:
        InputError: the format is unknown, or the table has no columns or is not what its suffix says.
        StorageError: the file cannot be read.
    """
    return table_of(uri, lambda: fsys.open_file(uri, storage), posixpath.splitext(uri)[1].lower())


def table_of(source: str, open_file: Callable[[], Any], suffix: str) -> UserTable:
    """Open a table by a function that opens its file, and its suffix in lower case; errors as in `open_table`."""
    opener = _OPENERS.get(suffix)
    if opener is None:
        raise InputError(f"{source}: {_advice(suffix)}")
    with fsys.storage_errors(source, "read"), open_file() as file:
        head = file.read(_SNIFF_BYTES)
    check_content(head, source, suffix)
    return opener(_Source(source, open_file, head, suffix))


TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
"""Suffixes of the tables that can be read, in lower case; ``.txt`` and ``.tab`` are read as CSV too."""
_ADVICE = {
    ".xlsx": "an Excel workbook; save the sheet as CSV UTF-8 (File, Save As) and name that file",
    ".ods": "a spreadsheet; save the sheet as CSV with UTF-8 and name that file",
    ".npz": "NumPy arrays without ids and classes; write a Parquet file with the columns id, real_or_synthetic "
    "and "
    "embedding (pandas: DataFrame({'id': ids, 'real_or_synthetic': kinds, 'embedding': list(array)})"
    ".to_parquet(...))",
    ".json": "JSON; write one object a line (JSON Lines, suffix .jsonl), for example with jq -c '.[]'",
    ".gz": "compressed; decompress it first (gunzip), or write Parquet, which is compressed",
    ".tgz": "a compressed tar file; decompress it first (gunzip) and give the .tar to --real or --synthetic",
    ".tar": "a tar file; give it to --real or --synthetic NAME=FILE",
    ".pkl": "a pickle, which could run code; write Parquet (pandas: frame.to_parquet())",
    ".h5": "an HDF5 file; write Parquet (pandas: frame.to_parquet())",
    ".feather": "an Arrow file; write Parquet (pandas: frame.to_parquet())",
    ".sqlite": "a database; export the table as CSV",
}
for _same, _suffixes in {
    ".xlsx": (".xls", ".xlsm", ".xlsb"),
    ".npz": (".npy", ".pt", ".pth", ".safetensors", ".mat"),
    ".gz": (".bz2", ".xz", ".zst"),
    ".pkl": (".pickle", ".joblib"),
    ".h5": (".hdf5", ".hdf"),
    ".feather": (".arrow", ".ipc"),
    ".sqlite": (".db", ".duckdb", ".sqlite3"),
    ".json": (".geojson",),
}.items():
    _ADVICE |= dict.fromkeys(_suffixes, _ADVICE[_same])
_MAGIC = {
    b"PK\x03\x04": ".xlsx",
    b"\xd0\xcf\x11\xe0": ".xls",
    b"\x93NUMPY": ".npz",
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"BZh": ".bz2",
    b"\xfd7zXZ": ".xz",
    b"\x89HDF": ".h5",
    b"ARROW1": ".feather",
    b"SQLite format 3": ".sqlite",
    b"PAR1": ".parquet",
}
"""First bytes of files that are not what the suffix of a table says."""


def _advice(suffix: str) -> str:
    if suffix in _ADVICE:
        return f"is {_ADVICE[suffix]}; tables are {', '.join(TABLE_SUFFIXES)}"
    return f"expected a {', '.join(TABLE_SUFFIXES)} or .zip file, or a folder"


def check_content(head: bytes, source: str, suffix: str) -> None:
    """Raise InputError with what to do if the first bytes of a file are not those of a table with this suffix."""
    if head.startswith(GIT_LFS_POINTER):
        raise InputError(
            f"{source}: is a Git LFS pointer, not the file itself; run git lfs pull in its folder, and again"
        )
    if not head.strip():
        raise InputError(f"{source}: is empty")
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    is_parquet = suffix in {".parquet", ".pq"}
    if found == ".parquet" and not is_parquet:
        raise InputError(f"{source}: is a Parquet file; rename it to end with .parquet")
    if found not in {None, ".parquet"}:
        raise InputError(f"{source}: is {_ADVICE[str(found)]}")


@dataclass(frozen=True)
class _Source:
    name: str
    open_file: Callable[[], Any]
    head: bytes
    suffix: str


# Parquet.


def _open_parquet(source: _Source) -> UserTable:
    with _parse_errors(source.name, "Parquet file"), source.open_file() as file:
        schema = pq.ParquetFile(file).schema_arrow
    names, notes = canonical_names(schema.names, source.name)
    renamed = pa.schema([f.with_name(name) for f, name in zip(schema, names, strict=True)], schema.metadata)
    column = schema.names[names.index("image_filename")] if "image_filename" in names else None
    if column is None or not _holds_bytes(schema.field(column).type):
        column = None

    written = dict(zip(names, schema.names, strict=True))
    classes = {name: labels for name, labels in class_names(schema).items() if name in _TEXT_COLUMNS}
    if classes:
        notes.append(f"{source.name}: class numbers were read as names: {name_list([*classes])}")

    def batches(wanted: list[str] | None = None) -> Iterator[pa.Table]:
        with _parse_errors(source.name, "Parquet file"), source.open_file() as file:
            if column is not None and wanted is None:
                for rows in _image_batches(pq.ParquetFile(file), source.name, names, column):
                    yield _with_class_names(rows, classes)
                return
            present = [name for name in (names if wanted is None else wanted) if name in written]
            for batch in pq.ParquetFile(file).iter_batches(
                _BATCH_ROWS, columns=[written[name] for name in present]
            ):
                # The file's order of columns is not that of the names.
                rows = pa.table({name: batch.column(written[name]) for name in present})
                yield _with_class_names(rows, classes)

    return UserTable(source.name, names, renamed, batches, lambda row: f"row {row:,}", notes, written=written)


def _with_class_names(rows: pa.Table, classes: dict[str, list[str]]) -> pa.Table:
    for name, labels in classes.items():
        if name in rows.column_names and pa.types.is_integer(rows.column(name).type):
            numbers = rows.column(name)
            # -1 is Hugging Face's number of a row without a class.
            is_known = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(labels)))
            numbers = pc.if_else(is_known, numbers, pa.scalar(None, numbers.type))
            rows = rows.set_column(rows.column_names.index(name), name, pc.take(pa.array(labels), numbers))
    return rows


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_batches(file: pq.ParquetFile, uri: str, names: list[str], column: str) -> Iterator[pa.Table]:
    """Yield row groups of a table with images in a column, without reading them: their paths and URIs instead."""
    schema = file.schema_arrow
    others = [name for name in schema.names if name != column]
    is_struct = pa.types.is_struct(schema.field(column).type)
    has_path = is_struct and schema.field(column).type.get_field_index("path") >= 0
    leaf = f"{column}.bytes" if is_struct else column
    for group in range(file.num_row_groups):
        n = file.metadata.row_group(group).num_rows
        table = file.read_row_group(group, columns=[*others, *([f"{column}.path"] if has_path else [])])
        paths = pc.struct_field(table.column(column), "path") if has_path else pa.nulls(n, pa.string())
        uris = pa.array([parquet_uri(uri, group, i, column) for i in range(n)], pa.string())
        chunks = (file.metadata.row_group(group).column(i) for i in range(file.metadata.num_columns))
        statistics = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == leaf), None)
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            images = file.read_row_group(group, columns=[leaf]).column(column)
            is_there = pc.is_valid(pc.struct_field(images, "bytes") if is_struct else images)
            uris = pc.if_else(is_there, uris, pa.scalar(None, pa.string()))
        by_name = {name: table.column(name) for name in others} | {column: paths}
        yield pa.table({new: by_name[name] for name, new in zip(schema.names, names, strict=True)}).append_column(
            EMBEDDED, uris
        )


class _parse_errors:  # noqa: N801 (a context manager)
    """Convert the errors of a file that is no table, and those of storage, to SynthscaleErrors."""

    def __init__(self, source: str, what: str) -> None:
        self._source, self._what = source, what
        self._storage = fsys.storage_errors(source, "read")

    def __enter__(self) -> None:
        self._storage.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, pa.ArrowException | UnicodeError):
            raise InputError(f"{self._source}: not a readable {self._what}: {_one_line(error)}") from error
        self._storage.__exit__(kind, error, trace)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


# CSV.


@dataclass(frozen=True)
class _Dialect:
    encoding: str
    separator: str
    decimal_point: str
    skip_lines: int
    header: list[str]


_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def _open_csv(source: _Source) -> UserTable:
    dialect, notes = _dialect(source)
    names, renamed = canonical_names(dialect.header, source.name)
    table = UserTable(source.name, names, None, lambda: iter(()), lambda row: "", notes + renamed)
    types = {
        name: pa.string() for name, plain in zip(dialect.header, names, strict=True) if plain in _TEXT_COLUMNS
    }
    state: dict[str, Any] = {"types": types, "checked": False}

    def batches(wanted: list[str] | None = None) -> Iterator[pa.Table]:
        if not state["checked"]:
            _settle_types(source, dialect, types)
            state["checked"] = True
        table.left_out = 0

        def leave_out(row: Any) -> str:
            table.left_out += 1
            return "skip"

        with _csv_errors(source, dialect), source.open_file() as file:
            for batch in _csv_reader(file, dialect, types, leave_out):
                # The reader renames nothing, so columns are taken by position.
                rows = pa.Table.from_arrays(batch.columns, names=names)
                yield rows if wanted is None else rows.select([name for name in wanted if name in names])

    table.batches = batches
    table.place = lambda row: _csv_place(source, dialect, row)
    return table


def _csv_reader(
    file: Any, dialect: _Dialect, types: dict[str, pa.DataType], leave_out: Callable[[Any], str]
) -> Any:
    # Names and labels are kept as written: 007 is not the number 7, and NA is a label and not a null.
    convert = pacsv.ConvertOptions(
        column_types=types, null_values=[""], strings_can_be_null=True, decimal_point=dialect.decimal_point
    )
    parse = pacsv.ParseOptions(delimiter=dialect.separator, newlines_in_values=True, invalid_row_handler=leave_out)
    encoding = "utf-8" if dialect.encoding == "utf-8-sig" else dialect.encoding
    read = pacsv.ReadOptions(
        block_size=_BLOCK_BYTES,
        encoding=encoding,
        skip_rows=dialect.skip_lines + 1,
        column_names=dialect.header,
    )
    return pacsv.open_csv(file, read, parse, convert)


def _settle_types(source: _Source, dialect: _Dialect, types: dict[str, pa.DataType]) -> None:
    """Add to ``types`` the columns with values that the types inferred from the first block do not admit."""
    if len(source.head) < min(_SNIFF_BYTES, _BLOCK_BYTES):
        return
    while True:
        with _csv_errors(source, dialect), source.open_file() as file:
            reader = _csv_reader(file, dialect, types, lambda row: "skip")
            inferred = reader.schema
            try:
                for _ in reader:
                    pass
                return
            except pa.ArrowInvalid as error:
                found = re.search(r"In CSV column #(\d+).*?conversion error", str(error), re.DOTALL)
                if found is None or pa.types.is_string(inferred.field(int(found[1])).type):
                    raise
                column = inferred.field(int(found[1]))
                types[column.name] = _PROMOTIONS.get(column.type, pa.string())


def _dialect(source: _Source) -> tuple[_Dialect, list[str]]:
    """Recognize encoding, separator and decimal point by the beginning of a file; InputError if it is no text."""
    head, notes = source.head, list[str]()
    encoding = next((name for bom, name in _BOMS.items() if head.startswith(bom)), "utf-8")
    if encoding == "utf-8" and b"\0" in head[:4096]:
        raise InputError(
            f"{source.name}: not a readable CSV table: it contains NUL bytes, as binary files do and "
            "UTF-16 without a byte order mark; save it as CSV UTF-8"
        )
    text = _decode_head(source, encoding)
    lines = text.splitlines()
    skip = 1 if re.fullmatch(r"\"?sep=(.)\"?", lines[0].strip("\ufeff")) else 0
    # A blank line before the header is skipped by the reader too.
    while skip < len(lines) and not lines[skip].strip():
        skip += 1
    body = "\n".join(lines[skip:])
    headers = {sep: next(csv.reader(io.StringIO(body), delimiter=sep), []) for sep in _SEPARATORS}
    separator = max(_SEPARATORS, key=lambda sep: _header_score(headers[sep]))
    if source.suffix in {".tsv", ".tab"} and len(headers["\t"]) > 1:
        separator = "\t"
    header = headers[separator]
    if not any(name.strip() for name in header):
        raise InputError(f"{source.name}: not a readable CSV table: its first line names no columns")
    if encoding == "utf-16":
        notes.append(f"{source.name}: read as UTF-16")
    if separator != ",":
        notes.append(f"{source.name}: columns are separated by {_SEPARATORS[separator]}")
    point = "."
    values = [value for line in lines[skip + 1 :] for value in line.split(separator)]
    has_commas, has_points = (
        any(re.fullmatch(rf"\s*-?\d+{mark}\d+\s*", value) for value in values) for mark in (",", r"\.")
    )
    if separator != "," and has_commas and not has_points:
        point = ","
        notes.append(f"{source.name}: numbers are read with a decimal comma")
    return _Dialect(encoding, separator, point, skip, _unique_blanks(header)), notes


def _unique_blanks(header: list[str]) -> list[str]:
    """Give columns without a name distinct ones, since options of columns are by name."""
    return [name if name.strip() else " " * (i + 1) for i, name in enumerate(header)]


def _header_score(header: list[str]) -> tuple[int, int]:
    plain = {re.sub(r"[\s\-]+", "_", name.strip().casefold()) for name in header}
    return len(plain & {*SPECIAL_COLUMNS, "file_name", "image"}), len(header)


def _decode_head(source: _Source, encoding: str) -> str:
    head = source.head
    if len(head) >= _SNIFF_BYTES:
        head = head[: len(head) // 2 * 2] if encoding == "utf-16" else head[: head.rfind(b"\n") + 1] or head
    try:
        return head.decode(encoding, "ignore" if encoding == "utf-16" else "strict")
    except UnicodeDecodeError as error:
        line = head.count(b"\n", 0, error.start) + 1
        raise _not_utf8(source.name, f"line {line:,}", head[error.start]) from error


def _not_utf8(source: str, place: str, byte: int) -> InputError:
    return InputError(
        f"{source}: {place} is not UTF-8 (byte 0x{byte:02X}); in Excel save it as CSV UTF-8, or convert it: "
        "iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
    )


class _csv_errors(_parse_errors):  # noqa: N801 (a context manager)
    """As `_parse_errors`; for text that is no UTF-8, says where."""

    def __init__(self, source: _Source, dialect: _Dialect) -> None:
        super().__init__(source.name, "CSV table")
        self._file, self._dialect = source, dialect

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, pa.ArrowInvalid) and "UTF8" in str(error):
            raise _find_bad_byte(self._file) from error
        super().__exit__(kind, error, trace)


def _find_bad_byte(source: _Source) -> InputError:
    with source.open_file() as file:
        for number, line in enumerate(iter(file.readline, b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return _not_utf8(source.name, f"line {number:,}", line[error.start])
    return InputError(f"{source.name}: contains text that is not UTF-8; save it as CSV UTF-8")


def _csv_place(source: _Source, dialect: _Dialect, row: int) -> str:
    """Return the line of a row as editors count: values may have line breaks, and blank lines are no rows."""
    with source.open_file() as file:
        text = io.TextIOWrapper(file, dialect.encoding, "replace", newline="")
        lines = csv.reader(text, delimiter=dialect.separator)
        found = -1
        try:
            while lines.line_num < dialect.skip_lines:
                next(lines)
            next(lines)
            start = lines.line_num + 1
            for values in lines:
                found += len(values) == len(dialect.header) and values != []
                if found == row:
                    return f"line {start:,}"
                start = lines.line_num + 1
        except (csv.Error, StopIteration):
            pass
        finally:
            text.detach()
    return f"row {row:,}"


# JSON Lines.


def _open_jsonl(source: _Source) -> UserTable:
    head = source.head.removeprefix(b"\xef\xbb\xbf")
    if head[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\0" in head[:4096]:
        raise InputError(f"{source.name}: not a readable table: it is not UTF-8; JSON Lines must be UTF-8")
    if head.lstrip()[:1] == b"[":
        raise InputError(f"{source.name}: is a JSON array; write one object a line, for example with jq -c '.[]'")
    first = next((line for line in head.splitlines() if line.strip()), b"")
    try:
        is_object = isinstance(json.loads(first), dict)
    except ValueError:
        # The line is longer than what was read, or malformed, which is found when it is read.
        is_object = True
    if not is_object:
        raise InputError(f"{source.name}: not a readable table: line 1 is not a JSON object")
    table = UserTable(source.name, [], None, lambda: iter(()), lambda row: _jsonl_place(source, row))
    names = dict[str, str]()
    mixed, kinds = dict[str, None](), dict[str, str]()

    def batches(wanted: list[str] | None = None) -> Iterator[pa.Table]:
        mixed.clear()
        first_line = 1
        with _parse_errors(source.name, "table"), source.open_file() as file:
            for block in _line_blocks(file):
                rows = _parse_lines(block, source.name, first_line, mixed)
                first_line += block.count(b"\n")
                _add_names(rows.column_names)
                rows = rows.rename_columns([names[name] for name in rows.column_names])
                for column in rows.schema:
                    kind = "number" if is_number(column.type) else str(column.type)
                    if not pa.types.is_null(column.type) and kinds.setdefault(column.name, kind) != kind:
                        # The spool converts columns whose types differ.
                        mixed[column.name] = None
                yield rows if wanted is None else rows.select([n for n in wanted if n in rows.column_names])
        if mixed:
            table.notes[:] = [note for note in table.notes if ": read as text" not in note]
            table.notes.append(
                f"{source.name}: columns with values of several types: {name_list([*mixed])}: read as text"
            )

    def _add_names(found: list[str]) -> None:
        if new := [name for name in found if name not in names]:
            canonical, notes = canonical_names([*names, *new], source.name)
            # Names of earlier batches are kept.
            names.update(zip(new, canonical[len(names) :], strict=True))
            table.notes += [note for note in notes if note not in table.notes]
            table.names[:] = names.values()

    table.batches = batches
    # The columns of the first rows, before any batch is asked for.
    _add_names(_parse_lines(_whole_lines(head), source.name, 1, {}).column_names)
    return table


def _whole_lines(head: bytes) -> bytes:
    return head if len(head) < _SNIFF_BYTES - 3 else head[: head.rfind(b"\n") + 1] or head


def _line_blocks(file: Any) -> Iterator[bytes]:
    """Yield a file in blocks of whole lines of about `_BLOCK_BYTES`, without a byte order mark."""
    rest, is_first = b"", True
    while piece := file.read(_BLOCK_BYTES):
        if is_first:
            piece, is_first = piece.removeprefix(b"\xef\xbb\xbf"), False
        whole, newline, piece = piece.rpartition(b"\n")
        if newline:
            yield rest + whole + newline
            rest = piece
        else:
            rest += piece
    if rest.strip():
        yield rest


def _parse_lines(block: bytes, source: str, first_line: int, mixed: dict[str, None]) -> pa.Table:
    """Parse lines with Arrow; line by line if Arrow refuses them, as it does columns of several types.

    Args:
        block: whole lines.
        source: name for messages.
        first_line: number of the first line.
        mixed: gets the names of columns that were converted to text.
    """
    if not block.strip():
        return pa.table({})
    if _NO_OBJECT.search(block):
        return _parse_each_line(block, source, first_line, mixed)
    texts = pa.schema([(name, pa.string()) for name in sorted(_TEXT_COLUMNS - {"image"})])
    parse = pajson.ParseOptions(explicit_schema=texts, unexpected_field_behavior="infer")
    try:
        # Arrow does not check the encoding of JSON.
        block.decode()
        table = pajson.read_json(io.BytesIO(block), pajson.ReadOptions(block_size=max(len(block), 1024)), parse)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return _parse_each_line(block, source, first_line, mixed)
    # The explicit schema adds a null column for each string column that the file does not have.
    present = [
        name
        for name in table.column_names
        if name not in texts.names or table.column(name).null_count < len(table)
    ]
    return table.select(present)


def _parse_each_line(block: bytes, source: str, first_line: int, mixed: dict[str, None]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(block.split(b"\n"), first_line):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            raise _not_utf8(source, f"line {number:,}", line[error.start]) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source}: not a readable table: line {number:,}: {_one_line(error)}") from error
        if not isinstance(row, dict):
            raise InputError(f"{source}: not a readable table: line {number:,} is not a JSON object")
        rows.append(row)
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        columns[name] = _mixed_column(name, values, mixed)
    return pa.table(columns) if columns else pa.table({})


def _mixed_column(name: str, values: list[Any], mixed: dict[str, None]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if name not in _TEXT_COLUMNS or kinds & {dict, list}:
        # Arrow takes True for the number 1, where it is among numbers.
        if not (bool in kinds and len(kinds) > 1):
            try:
                return pa.array(values, from_pandas=False)
            except (pa.ArrowException, OverflowError, UnicodeError):
                pass
        mixed[name] = None
    elif len(kinds) > 1:
        mixed[name] = None
    texts = [
        value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for value in values
    ]
    return pa.array([None if text is None else _valid(text) for text in texts], pa.string())


def _valid(text: str) -> str:
    """Replace lone surrogates, which JSON can escape and UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _jsonl_place(source: _Source, row: int) -> str:
    with source.open_file() as file:
        found = -1
        for number, line in enumerate(iter(file.readline, b""), 1):
            found += bool(line.strip())
            if found == row:
                return f"line {number:,}"
    return f"row {row:,}"


_OPENERS: dict[str, Callable[[_Source], UserTable]] = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), _open_csv),
    **dict.fromkeys((".jsonl", ".ndjson"), _open_jsonl),
    **dict.fromkeys((".parquet", ".pq"), _open_parquet),
}
"""Function that opens a table, by lower-case suffix."""
