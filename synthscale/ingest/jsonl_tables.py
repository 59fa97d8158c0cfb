"""JSON Lines as users' tables: one object a line; columns of several types are read as text, and that is said.

Reads files on disk or S3, and members of zip files through their opener.
"""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from synthscale.errors import InputError
from synthscale.ingest.table_columns import canonical_names, is_number, name_list
from synthscale.ingest.user_table import TEXT_COLUMNS, Source, UserTable, not_utf8, one_line, parse_errors

_BLOCK_BYTES = 64 * 2**20
"""Bytes parsed at a time (64 MiB), in whole lines."""
_NO_OBJECT = re.compile(rb"^[ \t\r]*[^{\s]|\}[ \t\r]*n", re.MULTILINE)
"""A line that begins with no object, or a null after one: Arrow crashes on a null in place of an object."""


def open_jsonl(source: Source) -> UserTable:
    """Open a file of JSON Lines."""
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
        with parse_errors(source.name, "table"), source.open_file() as file:
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
    _add_names(_parse_lines(head if source.is_whole else _whole_lines(head), source.name, 1, {}).column_names)
    return table


def _whole_lines(head: bytes) -> bytes:
    return head[: head.rfind(b"\n") + 1] or head


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
    texts = pa.schema([(name, pa.string()) for name in sorted(TEXT_COLUMNS - {"image"})])
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
            raise not_utf8(source, f"line {number:,}", line[error.start]) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source}: not a readable table: line {number:,}: {one_line(error)}") from error
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
    if name not in TEXT_COLUMNS or kinds & {dict, list}:
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


def _jsonl_place(source: Source, row: int) -> str:
    with source.open_file() as file:
        found = -1
        for number, line in enumerate(iter(file.readline, b""), 1):
            found += bool(line.strip())
            if found == row:
                return f"line {number:,}"
    return f"row {row:,}"
