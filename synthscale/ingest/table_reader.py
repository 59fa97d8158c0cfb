"""Open a user's table: CSV in its dialects, JSON Lines or Parquet, with canonical names of columns.

Reads files on disk or S3, and members of zip files through their opener; writes nothing. What is read otherwise
than it is written is said in notes.
"""

import posixpath
from collections.abc import Callable
from typing import Any

from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.csv_tables import open_csv
from synthscale.ingest.foreign_files import advice, check_content
from synthscale.ingest.jsonl_tables import open_jsonl
from synthscale.ingest.parquet_tables import open_parquet
from synthscale.ingest.user_table import Source, UserTable
from synthscale.storage import filesystems as fsys

_SNIFF_BYTES = 2**20
"""Bytes at the beginning of a table that show its encoding, separator and decimal point (1 MiB)."""


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
        raise InputError(f"{source}: {advice(suffix)}")
    with fsys.storage_errors(source, "read"), open_file() as file:
        head = file.read(_SNIFF_BYTES)
    check_content(head, source, suffix)
    return opener(Source(source, open_file, head, len(head) < _SNIFF_BYTES, suffix))


_OPENERS: dict[str, Callable[[Source], UserTable]] = {
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), open_csv),
    **dict.fromkeys((".jsonl", ".ndjson"), open_jsonl),
    **dict.fromkeys((".parquet", ".pq"), open_parquet),
}
"""Function that opens a table, by lower-case suffix."""
