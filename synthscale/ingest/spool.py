"""Temporary storage of rows between their source and the manifest, and a digest of a source's contents.

Rows are written to Arrow files in the temporary folder and memory-mapped, so an input may be larger than memory.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from synthscale.ingest.table_columns import as_text, is_number
from synthscale.storage.filesystems import storage_errors
from synthscale.tables.columns import iter_chunks
from synthscale.tables.id_hashes import Hashes, hash_ids


class Spool:
    """Append-only buffer of rows on local disk, read back as one memory-mapped table.

    Use it as a context manager: on exit, files that `rows` has not returned are deleted.
    """

    def __init__(self) -> None:
        """Create an empty spool."""
        self._writer: Any = None
        self._schema: pa.Schema | None = None
        self._paths: list[str] = []

    def add(self, rows: pa.Table) -> None:
        """Append a table; its columns and their types may differ from the previous table's.

        Every change of schema starts another file.
        """
        if self._schema is None or not rows.schema.equals(self._schema):
            self._close()
            handle, path = tempfile.mkstemp(prefix="synthscale-rows-")
            os.close(handle)
            self._paths.append(path)
            self._schema = rows.schema
            with storage_errors(path, "write"):
                self._writer = pa.ipc.new_file(path, rows.schema)
        with storage_errors(self._paths[-1], "write"):
            self._writer.write_table(rows)

    def add_all(self, tables: Iterable[pa.Table]) -> None:
        """Append several tables, in order."""
        for table in tables:
            self.add(table)

    def rows(self) -> pa.Table:
        """Return all rows in the order added; call it once.

        Returns:
            A memory-mapped table. A column missing from some tables is null there, and a column of incompatible
            types is converted to strings. The files are already unlinked: the disk space is freed with the last
            reference to the table.
        """
        self._close()
        tables = []
        for path in self._paths:
            tables.append(pa.ipc.open_file(pa.memory_map(path)).read_all())
            os.unlink(path)
        self._paths = []
        return concatenated(tables)

    def _close(self) -> None:
        writer, self._writer, self._schema = self._writer, None, None
        if writer is not None:
            with storage_errors(self._paths[-1], "write"):
                writer.close()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        for path in self._paths:
            os.unlink(path)


def concatenated(tables: list[pa.Table]) -> pa.Table:
    """Concatenate tables; missing columns are null, and columns of incompatible types become strings."""
    if len(tables) < 2:
        return tables[0] if tables else pa.table({})
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.concat_tables(_with_mixed_as_strings(tables), promote_options="permissive")


def mapped_id_hashes(ids: pa.ChunkedArray) -> Hashes:
    """Return the hash of each id (`hash_ids`): (n,) uint64, memory-mapped from an unlinked temporary file."""
    with tempfile.TemporaryFile(prefix="synthscale-keys-") as file:
        for piece in iter_chunks(ids):
            file.write(hash_ids(piece.to_pylist()).tobytes())
        file.flush()
        return np.memmap(file, np.uint64, "r") if len(ids) else np.empty(0, np.uint64)


def _with_mixed_as_strings(tables: list[pa.Table]) -> list[pa.Table]:
    """Convert columns whose types in the tables have none in common to strings."""
    types: dict[str, set[pa.DataType]] = {}
    for field in (field for table in tables for field in table.schema):
        if not pa.types.is_null(field.type):
            types.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, kinds in types.items() if len(kinds) > 1 and not all(map(is_number, kinds))}
    converted = []
    for table in tables:
        for i, name in enumerate(table.column_names):
            if name in mixed:
                table = table.set_column(i, name, _as_strings(table.column(i)))
        converted.append(table)
    return converted


def _as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return as_text(column)


class RunningDigest:
    """Incremental BLAKE2b digest of a sequence of JSON values, independent of how it is split into calls."""

    def __init__(self, *start: Any) -> None:
        """Start the digest with values that identify the source."""
        self._hash = hashlib.blake2b(digest_size=16)
        self.add([start])

    def add(self, items: Iterable[Any]) -> None:
        """Append JSON-serializable values."""
        for item in items:
            self._hash.update(json.dumps(item).encode() + b"\n")

    def text(self) -> str:
        """Return the digest of everything added, as 32 hexadecimal digits."""
        return self._hash.hexdigest()
