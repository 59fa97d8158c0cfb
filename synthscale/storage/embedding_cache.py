"""Embeddings that earlier runs made, kept by what they are of: a file's place and etag, and how it was embedded.

The cache is a folder, local or on S3: ``CACHE/ENCODER/part-NAME.parquet``, each a set of rows as ``embeddings/``
has them with a ``key`` in the place of ``row``. Parts are named after the keys that they hold, written whole and
never changed, so that any number of runs may use a cache at once, and any part may be deleted at any time.
"""

import hashlib
from dataclasses import dataclass

import pyarrow as pa

from synthscale.config import StorageConfig
from synthscale.errors import SchemaError, StorageError
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import StoredFile
from synthscale.tables.schemas import conform, embeddings_schema

KEY = pa.binary(16)


def cache_keys(files: list[StoredFile]) -> pa.Array:
    """Return what each file's embedding is kept by: 128 bits of its URI, size and etag; null without an etag."""
    return pa.array([None if file.etag is None else _key(file) for file in files], KEY)


def _key(file: StoredFile) -> bytes:
    text = f"{file.uri}\0{file.size_bytes}\0{file.etag}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class EmbeddingCache:
    """The part of a cache that one way of embedding reads and writes; picklable."""

    uri: str
    storage: StorageConfig
    dimensions: int

    @property
    def schema(self) -> pa.Schema:
        """The columns of a part."""
        fields = [field for field in embeddings_schema(self.dimensions) if field.name != "row"]
        return pa.schema([pa.field("key", KEY), *fields])

    def parts(self) -> list[str]:
        """Return the names of all parts, sorted."""
        names = fsys.file_names(self.uri, self.storage)
        return sorted(name for name in names if name.startswith("part-") and name.endswith(".parquet"))

    def keys(self, part: str) -> pa.ChunkedArray:
        """Return the keys of a part, none where it is gone or damaged."""
        try:
            return fsys.read_table(fsys.join(self.uri, part), self.storage, ["key"]).column("key").cast(KEY)
        except (StorageError, pa.ArrowInvalid, KeyError):
            return pa.chunked_array([], KEY)

    def read(self, part: str) -> pa.Table | None:
        """Return the rows of a part; None where it is gone or damaged."""
        try:
            table = fsys.read_table(fsys.join(self.uri, part), self.storage)
            return conform(table, self.schema, part).select(self.schema.names)
        except (StorageError, SchemaError):
            return None

    def write(self, rows: pa.Table) -> None:
        """Keep rows; those without a key are left out, and none need be new."""
        rows = rows.filter(rows.column("key").is_valid())
        if not rows.num_rows:
            return
        name = hashlib.blake2b(b"".join(rows.column("key").to_pylist()), digest_size=12).hexdigest()
        fsys.write_table(
            fsys.join(self.uri, f"part-{name}.parquet"), conform(rows, self.schema, name), self.storage
        )
