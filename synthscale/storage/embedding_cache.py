"""Cache of embeddings shared between runs, keyed by the image file (URI, size, etag) and the encoder settings.

The cache is a local or S3 folder of parts, ``CACHE/ENCODER/part-NAME.parquet``, where ENCODER is a digest of the
encoder settings and NAME a hash of the part's keys. A part has the columns of ``embeddings/``, with ``key`` in
place of ``row``. Parts are written atomically and never changed, so several runs may use a cache at the same time,
and any part may be deleted at any time.
"""

import hashlib
from dataclasses import dataclass

import pyarrow as pa

from synthscale.config import StorageConfig
from synthscale.errors import SchemaError, StorageError, StorageUnavailable
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import StoredFile
from synthscale.tables.schemas import conform, embeddings_schema

KEY = pa.binary(16)


def cache_keys(files: list[StoredFile]) -> pa.Array:
    """Return the cache key of each file: (n,) binary(16), a hash of URI, size and etag; null without an etag."""
    return pa.array([None if file.etag is None else _key(file) for file in files], KEY)


def _key(file: StoredFile) -> bytes:
    text = f"{file.uri}\0{file.size_bytes}\0{file.etag}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(frozen=True)
class EmbeddingCache:
    """Cache entries of one encoder configuration; picklable.

    Attributes:
        uri: folder of the entries, ``CACHE/ENCODER``.
        storage: S3 settings.
        dimensions: D, length of a vector.
    """

    uri: str
    storage: StorageConfig
    dimensions: int

    @property
    def schema(self) -> pa.Schema:
        """Schema of a part: ``key`` and the columns of ``embeddings/`` except ``row``."""
        fields = [field for field in embeddings_schema(self.dimensions) if field.name != "row"]
        return pa.schema([pa.field("key", KEY), *fields])

    def parts(self) -> list[str]:
        """Return the file names of all parts, sorted."""
        names = fsys.file_names(self.uri, self.storage)
        return sorted(name for name in names if name.startswith("part-") and name.endswith(".parquet"))

    def keys(self, part: str) -> pa.ChunkedArray:
        """Return the keys of a part in row order; empty if the part is missing or damaged.

        Raises:
            StorageUnavailable: the cache cannot be reached; its entries are not given up for that.
        """
        try:
            return fsys.read_table(fsys.join(self.uri, part), self.storage, ["key"]).column("key").cast(KEY)
        except StorageUnavailable:
            raise
        except (StorageError, pa.ArrowInvalid, KeyError):
            return pa.chunked_array([], KEY)

    def read(self, part: str) -> pa.Table | None:
        """Return the rows of a part; None if it is missing or damaged. Raises as `keys` does."""
        try:
            table = fsys.read_table(fsys.join(self.uri, part), self.storage)
            return conform(table, self.schema, part).select(self.schema.names)
        except StorageUnavailable:
            raise
        except (StorageError, SchemaError):
            return None

    def write(self, rows: pa.Table) -> None:
        """Write rows with the columns of `schema` as one part; rows without a key are skipped.

        Keys that other parts already contain are written again.
        """
        rows = rows.filter(rows.column("key").is_valid())
        if not rows.num_rows:
            return
        name = hashlib.blake2b(b"".join(rows.column("key").to_pylist()), digest_size=12).hexdigest()
        fsys.write_table(
            fsys.join(self.uri, f"part-{name}.parquet"), conform(rows, self.schema, name), self.storage
        )
