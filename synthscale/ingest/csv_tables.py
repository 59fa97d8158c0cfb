"""CSV files as users' tables: separators, encodings and decimal points are recognized, and said in notes.

Reads files on disk or S3, and members of zip files through their opener.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from synthscale.errors import InputError
from synthscale.ingest.table_columns import SPECIAL_COLUMNS, canonical_names
from synthscale.ingest.user_table import TEXT_COLUMNS, Source, UserTable, not_utf8, parse_errors

_BLOCK_BYTES = 64 * 2**20
"""Bytes parsed at a time (64 MiB). A line must fit into a block."""
_PROMOTIONS = {pa.null(): pa.float64(), pa.int64(): pa.float64()}
"""Type to try next for a column with a later value that its first block did not lead to expect; else text."""


@dataclass(frozen=True)
class _Dialect:
    encoding: str
    separator: str
    decimal_point: str
    skip_lines: int
    header: list[str]


_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def open_csv(source: Source) -> UserTable:
    """Open a CSV file in any of its dialects."""
    dialect, notes = _dialect(source)
    names, renamed = canonical_names(dialect.header, source.name)
    table = UserTable(source.name, names, None, lambda: iter(()), lambda row: "", notes + renamed)
    types = {name: pa.string() for name, plain in zip(dialect.header, names, strict=True) if plain in TEXT_COLUMNS}
    state: dict[str, Any] = {"types": types, "checked": False}

    def batches(wanted: list[str] | None = None) -> Iterator[pa.Table]:
        if not state["checked"]:
            _settle_types(source, dialect, types)
            state["checked"] = True
        table.left_out = 0

        def leave_out(row: Any) -> str:
            table.left_out += 1
            return "skip"

        with _csv_errors(source), source.open_file() as file:
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


def _settle_types(source: Source, dialect: _Dialect, types: dict[str, pa.DataType]) -> None:
    """Add to ``types`` the columns with values that the types inferred from the first block do not admit."""
    if source.is_whole and len(source.head) < _BLOCK_BYTES:
        return
    while True:
        with _csv_errors(source), source.open_file() as file:
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


def _dialect(source: Source) -> tuple[_Dialect, list[str]]:
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


def _decode_head(source: Source, encoding: str) -> str:
    head = source.head
    if not source.is_whole:
        head = head[: len(head) // 2 * 2] if encoding == "utf-16" else head[: head.rfind(b"\n") + 1] or head
    try:
        return head.decode(encoding, "ignore" if encoding == "utf-16" else "strict")
    except UnicodeDecodeError as error:
        line = head.count(b"\n", 0, error.start) + 1
        raise not_utf8(source.name, f"line {line:,}", head[error.start]) from error


@contextmanager
def _csv_errors(source: Source) -> Iterator[None]:
    """As `parse_errors`; for text that is no UTF-8, says where."""
    with parse_errors(source.name, "CSV table"):
        try:
            yield
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error):
                raise _find_bad_byte(source) from error
            raise


def _find_bad_byte(source: Source) -> InputError:
    with source.open_file() as file:
        for number, line in enumerate(iter(file.readline, b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return not_utf8(source.name, f"line {number:,}", line[error.start])
    return InputError(f"{source.name}: contains text that is not UTF-8; save it as CSV UTF-8")


def _csv_place(source: Source, dialect: _Dialect, row: int) -> str:
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
