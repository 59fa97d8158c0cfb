"""Rows on their way from a source to the manifest: kept on this machine's disk, never in its memory as a whole."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from synthscale.tables.columns import iter_chunks
from synthscale.tables.id_hashes import Hashes, hash_ids


class Spool:
    """Takes tables of rows, one after the other, and gives them back as one that is mapped from disk."""

    def __init__(self) -> None:
        """Begin without rows."""
        self._writer: Any = None
        self._schema: pa.Schema | None = None
        self._paths: list[str] = []

    def add(self, rows: pa.Table) -> None:
        """Append rows; a column may come and go, or hold nulls alone, from one table to the next."""
        if self._schema is None or not rows.schema.equals(self._schema):
            self._end()
            handle, path = tempfile.mkstemp(prefix="synthscale-rows-")
            os.close(handle)
            self._paths.append(path)
            self._schema = rows.schema
            self._writer = pa.ipc.new_file(path, rows.schema)
        self._writer.write_table(rows)

    def add_all(self, tables: Iterable[pa.Table]) -> None:
        """Append tables."""
        for table in tables:
            self.add(table)

    def rows(self) -> pa.Table:
        """Return all rows; their file has no name any more, and goes with the last table that shows it."""
        self._end()
        tables = []
        for path in self._paths:
            tables.append(pa.ipc.open_file(pa.memory_map(path)).read_all())
            os.unlink(path)
        self._paths = []
        if len(tables) == 1:
            return tables[0]
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowTypeError:
            return pa.concat_tables(_as_texts(tables), promote_options="permissive")

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = self._schema = None

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        for path in self._paths:
            os.unlink(path)


def mapped_keys(ids: pa.ChunkedArray) -> Hashes:
    """Return the key of each id (keys.py), (n,), mapped from a file without a name."""
    with tempfile.TemporaryFile(prefix="synthscale-keys-") as file:
        for piece in iter_chunks(ids):
            file.write(hash_ids(piece.to_pylist()).tobytes())
        file.flush()
        return np.memmap(file, np.uint64, "r") if len(ids) else np.empty(0, np.uint64)


def _as_texts(tables: list[pa.Table]) -> list[pa.Table]:
    """Turn into texts what is of one kind in one table and of another in another."""
    kinds: dict[str, set[str]] = {}
    for field in (field for table in tables for field in table.schema):
        if not pa.types.is_null(field.type):
            kinds.setdefault(field.name, set()).add(str(field.type))
    mixed = {name for name, own in kinds.items() if len(own) > 1}
    return [
        table.cast(pa.schema([f.with_type(pa.string()) if f.name in mixed else f for f in table.schema]))
        for table in tables
    ]


class RunningDigest:
    """A digest of what was found, piece by piece; the same however the pieces were cut."""

    def __init__(self, *start: Any) -> None:
        """Begin with what identifies the source."""
        self._hash = hashlib.blake2b(digest_size=16)
        self.add([start])

    def add(self, items: Iterable[Any]) -> None:
        """Take in items of JSON."""
        for item in items:
            self._hash.update(json.dumps(item).encode() + b"\n")

    def text(self) -> str:
        """Return the digest of all that was taken in."""
        return self._hash.hexdigest()
