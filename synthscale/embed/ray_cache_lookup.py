"""Look up rows of the run in the embedding cache (``storage.cache``), so that they are not embedded again.

Reads ``manifest/`` and the keys of the cache. One task looks all rows up and writes the locations of cached rows
to the temporary table ``_cached/`` of the run, one file per shard. The tasks of embed then read the vectors.
Missing cache entries are recomputed, also those that disappear after the lookup.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from synthscale.embed.image_reader import FILE_COLUMNS, files_of
from synthscale.storage import filesystems as fsys
from synthscale.storage.embedding_cache import EmbeddingCache, cache_keys
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.columns import vector_matrix
from synthscale.tables.layout import Shard
from synthscale.tables.schemas import embeddings_schema

FOLDER = "_cached"
_READERS = 16
METADATA_COLUMNS = tuple(name for name in embeddings_schema(1).names if name not in {"row", "vector"})
"""Columns of ``embeddings/`` other than ``row`` and ``vector``."""
_LOCATIONS = pa.schema([("row", pa.int64()), ("part", pa.string()), ("position", pa.int64())])


@dataclass(frozen=True)
class CachedRows:
    """Rows of a shard that are embedded already.

    Attributes:
        at: (m,) int, offset of each row from the shard's first row.
        vectors: (m, D) float32.
        metadata: m dicts with the columns `METADATA_COLUMNS`.
    """

    at: NDArray[np.int64]
    vectors: NDArray[np.float32]
    metadata: list[dict[str, Any]]

    @classmethod
    def of(cls, rows: pa.Table, at: NDArray[np.int64], dimensions: int) -> "CachedRows":
        """Convert m rows with the columns of ``embeddings/``, ``row`` excepted."""
        vectors = np.asarray(vector_matrix(rows, (0, dimensions)), np.float32)
        return cls(at, vectors, rows.select(list(METADATA_COLUMNS)).to_pylist())

    @classmethod
    def none(cls, dimensions: int) -> "CachedRows":
        """Return no rows."""
        return cls(np.empty(0, np.int64), np.empty((0, dimensions), np.float32), [])


@dataclass(frozen=True)
class CacheLookup:
    """The embedding cache as seen by the tasks of embed; picklable.

    Attributes:
        run: the run whose rows are looked up.
        cache: cache entries of the run's encoder; with None every lookup is empty and nothing is stored.
    """

    run: RunDirectory
    cache: EmbeddingCache | None

    def find(self, shards: Sequence[Shard]) -> dict[int, int]:
        """Look up all rows and write their locations to ``_cached/``.

        Returns:
            Shard index -> number of its rows that are in the cache; shards without any are left out.
        """
        if self.cache is None:
            return {}
        fsys.remove(self.run.path(FOLDER), self.run.storage)
        counts: dict[int, int] = ray.get(ray.remote(_find).options(num_cpus=1).remote(self, list(shards)))
        return counts

    def locations(self, shard: Shard) -> pa.Table:
        """Return the cached rows of a shard: ``row``, the file name of the cache ``part``, ``position`` in it."""
        if self.cache is None or not fsys.exists(self.run.path(FOLDER, shard.name), self.run.storage):
            return _LOCATIONS.empty_table()
        return self.run.read_shard(FOLDER, shard)

    def read(self, shard: Shard, dimensions: int) -> CachedRows:
        """Read the cached rows of a shard, leaving out rows whose cache part has been deleted or damaged."""
        locations = self.locations(shard)
        names = locations.column("part").to_numpy(zero_copy_only=False)
        at, position = (locations.column(name).to_numpy() for name in ("row", "position"))
        at = at - shard.start
        pieces = [CachedRows.none(dimensions)]
        for name in dict.fromkeys(names.tolist()):
            in_part = np.flatnonzero(names == name)
            part = None if self.cache is None else self.cache.read(name)
            if part is not None and position[in_part].max() < part.num_rows:
                pieces.append(CachedRows.of(part.take(pa.array(position[in_part])), at[in_part], dimensions))
        return CachedRows(
            np.concatenate([piece.at for piece in pieces]),
            np.concatenate([piece.vectors for piece in pieces]),
            [metadata for piece in pieces for metadata in piece.metadata],
        )

    def store(self, shard: Shard, embeddings: pa.Table, computed: set[int]) -> None:
        """Add newly embedded rows of a shard to the cache.

        Args:
            shard: the shard.
            embeddings: its rows of ``embeddings/``.
            computed: offsets from the shard's first row; those without an embedding (failures) are skipped.
        """
        if self.cache is None or not computed:
            return
        manifest = self.run.read_shard("manifest", shard, ["row", *FILE_COLUMNS])
        at = embeddings.column("row").to_numpy() - shard.start
        rows = embeddings.append_column("key", cache_keys(files_of(manifest)).take(pa.array(at)))
        self.cache.write(rows.filter(pa.array(np.isin(at, list(computed)))).drop_columns(["row"]))

    def remove_locations(self) -> None:
        """Remove the temporary table that `find` wrote."""
        if self.cache is not None:
            fsys.remove(self.run.path(FOLDER), self.run.storage)


def _find(lookup: CacheLookup, shards: list[Shard]) -> dict[int, int]:
    """Join the manifest's keys with the cache's: binary search for the first half of a key, then compare both."""
    cache, run = lookup.cache, lookup.run
    assert cache is not None
    parts = cache.parts()
    with ThreadPoolExecutor(_READERS) as pool:
        part_keys = [_halves(keys.combine_chunks()) for keys in pool.map(cache.keys, parts)]
    if not any(len(halves) for halves in part_keys):
        return {}
    keys = np.concatenate(part_keys)
    part = np.repeat(np.arange(len(part_keys), dtype=np.int32), [len(halves) for halves in part_keys])
    position = np.concatenate([np.arange(len(halves), dtype=np.int32) for halves in part_keys])
    order = np.argsort(keys[:, 0], kind="stable")
    sorted_firsts = keys[order, 0]

    def look_up(shard: Shard) -> int:
        manifest = run.read_shard("manifest", shard, ["row", *FILE_COLUMNS])
        wanted = cache_keys(files_of(manifest))
        rows = manifest.column("row").to_numpy()[wanted.is_valid().to_numpy(zero_copy_only=False)]
        queries = _halves(wanted.drop_null())
        candidates = order[np.minimum(np.searchsorted(sorted_firsts, queries[:, 0]), len(order) - 1)]
        is_hit = (keys[candidates] == queries).all(1)
        if is_hit.any():
            hits = candidates[is_hit]
            locations = {"row": rows[is_hit], "part": [parts[i] for i in part[hits]], "position": position[hits]}
            run.write_shard(FOLDER, shard, pa.table(locations), _LOCATIONS)
        return int(is_hit.sum())

    with ThreadPoolExecutor(_READERS) as pool:
        counts = list(pool.map(look_up, shards))
    return {shard.index: count for shard, count in zip(shards, counts, strict=True) if count}


def _halves(keys: pa.Array) -> NDArray[np.uint64]:
    """Split 128-bit keys into two 64-bit integers each: (n, 2)."""
    data = b"".join(keys.to_pylist())
    return np.frombuffer(data, np.uint64).reshape(-1, 2)
