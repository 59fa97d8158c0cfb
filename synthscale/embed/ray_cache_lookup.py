"""A part of embed: rows whose embeddings earlier runs kept in ``storage.cache`` are taken from there.

A task looks the manifest's rows up and leaves, shard by shard, where each lies in ``_cached/`` of the run.
Whatever of the cache is gone when it is wanted is embedded as if it had never been there.
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
"""The columns of ``embeddings/`` beside the row and its vector."""
_PLACES = pa.schema([("row", pa.int64()), ("part", pa.string()), ("position", pa.int64())])


@dataclass(frozen=True)
class CachedRows:
    """Rows of a shard that an earlier run embedded: places in the shard (m,), vectors (m, D), facts (m)."""

    at: NDArray[np.int64]
    vectors: NDArray[np.float32]
    facts: list[dict[str, Any]]


@dataclass(frozen=True)
class CacheLookup:
    """What earlier runs kept, as the tasks of embed see it; picklable. Without a cache, nothing."""

    run: RunDirectory
    cache: EmbeddingCache | None

    def find(self, shards: Sequence[Shard]) -> dict[int, int]:
        """Look rows up; return for each shard's number how many of its rows there are."""
        if self.cache is None:
            return {}
        fsys.remove(self.run.path(FOLDER), self.run.storage)
        found: dict[int, int] = ray.get(ray.remote(_find).options(num_cpus=1).remote(self, list(shards)))
        return found

    def places(self, shard: Shard) -> pa.Table:
        """Return which rows of a shard were found, and where."""
        if self.cache is None or not fsys.exists(self.run.path(FOLDER, shard.name), self.run.storage):
            return _PLACES.empty_table()
        return self.run.read_shard(FOLDER, shard)

    def known(self, shard: Shard, dimensions: int) -> CachedRows:
        """Return the rows of a shard that were found and are still there."""
        places = self.places(shard)
        names = places.column("part").to_numpy(zero_copy_only=False)
        at, position = (places.column(name).to_numpy() for name in ("row", "position"))
        at = at - shard.start
        pieces = [CachedRows(np.empty(0, np.int64), np.empty((0, dimensions), np.float32), [])]
        for name in dict.fromkeys(names.tolist()):
            own = np.flatnonzero(names == name)
            part = None if self.cache is None else self.cache.read(name)
            if part is not None and position[own].max() < part.num_rows:
                rows = part.take(pa.array(position[own]))
                vectors = np.asarray(vector_matrix(rows, (0, dimensions)), np.float32)
                pieces.append(CachedRows(at[own], vectors, rows.select(list(METADATA_COLUMNS)).to_pylist()))
        return CachedRows(
            np.concatenate([piece.at for piece in pieces]),
            np.concatenate([piece.vectors for piece in pieces]),
            [fact for piece in pieces for fact in piece.facts],
        )

    def keep(self, shard: Shard, new: set[int]) -> None:
        """Keep a written shard's rows at these places for later runs."""
        if self.cache is None or not new:
            return
        written = self.run.read_shard("embeddings", shard)
        manifest = self.run.read_shard("manifest", shard, ["row", *FILE_COLUMNS])
        at = written.column("row").to_numpy() - shard.start
        rows = written.append_column("key", cache_keys(files_of(manifest)).take(pa.array(at)))
        self.cache.write(rows.filter(pa.array(np.isin(at, list(new)))).drop_columns(["row"]))

    def forget(self) -> None:
        """Remove what `find` left behind."""
        if self.cache is not None:
            fsys.remove(self.run.path(FOLDER), self.run.storage)


def _find(earlier: CacheLookup, shards: list[Shard]) -> dict[int, int]:
    cache, run = earlier.cache, earlier.run
    assert cache is not None
    parts = cache.parts()
    with ThreadPoolExecutor(_READERS) as pool:
        held = [_halves(keys.combine_chunks()) for keys in pool.map(cache.keys, parts)]
    if not any(len(own) for own in held):
        return {}
    keys = np.concatenate(held)
    part = np.repeat(np.arange(len(held), dtype=np.int32), [len(own) for own in held])
    position = np.concatenate([np.arange(len(own), dtype=np.int32) for own in held])
    order = np.argsort(keys[:, 0], kind="stable")
    firsts = keys[order, 0]

    def look_up(shard: Shard) -> int:
        manifest = run.read_shard("manifest", shard, ["row", *FILE_COLUMNS])
        wanted = cache_keys(files_of(manifest))
        rows = manifest.column("row").to_numpy()[wanted.is_valid().to_numpy(zero_copy_only=False)]
        asked = _halves(wanted.drop_null())
        nearest = order[np.minimum(np.searchsorted(firsts, asked[:, 0]), len(order) - 1)]
        there = (keys[nearest] == asked).all(1)
        if there.any():
            at = nearest[there]
            places = {"row": rows[there], "part": [parts[i] for i in part[at]], "position": position[at]}
            run.write_shard(FOLDER, shard, pa.table(places), _PLACES)
        return int(there.sum())

    with ThreadPoolExecutor(_READERS) as pool:
        counts = list(pool.map(look_up, shards))
    return {shard.index: count for shard, count in zip(shards, counts, strict=True) if count}


def _halves(keys: pa.Array) -> NDArray[np.uint64]:
    """Keys of 128 bits as (n, 2) numbers."""
    data = b"".join(keys.to_pylist())
    return np.frombuffer(data, np.uint64).reshape(-1, 2)
