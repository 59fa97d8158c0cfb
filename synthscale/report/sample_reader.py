"""Reads a sample of a run's embeddings for the map, from a bounded number of shards.

Reads ``manifest/`` and ``embeddings/``.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.columns import vector_matrix
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.layout import Shard, VectorLayout
from synthscale.tables.schemas import REAL

_MANIFEST_SHARDS = 1000
"""About how many shards of the manifest are read to find the rows of each set (at most twice as many)."""
_SHARDS_PER_SET = 16
"""Shards of embeddings that are read for each set."""
_READ_THREADS = 16
"""Shards of the manifest that are read in parallel."""


@dataclass(frozen=True)
class RowSample:
    """Sample of n rows of a run.

    Attributes:
        ids: (n,) ids.
        sets: (n,) name of the generator, or ``real``.
    """

    ids: list[str]
    sets: list[str]


def sample_embeddings(run: RunDirectory, limit: int) -> tuple[RowSample, NDArray[np.float64]]:
    """Sample about ``limit`` embedded rows: equally many of each set, evenly spaced in a few of its shards.

    Args:
        run: a run whose embeddings are complete.
        limit: number of rows in all; each set gets at least 2.

    Returns:
        The rows, and their (n, d) embeddings in the classifier's dimensions.
    """
    shards_by_set = _shards_by_set(run)
    layout = run.layout()
    rows_per_set = max(2, limit // max(1, len(shards_by_set)))
    sampled: list[tuple[str, str]] = []
    vectors: list[NDArray[np.floating]] = []
    for name, shards in shards_by_set.items():
        chosen = [shards[i] for i in np.unique(np.linspace(0, len(shards) - 1, _SHARDS_PER_SET).astype(int))]
        for position, shard in enumerate(chosen):
            count = rows_per_set * (position + 1) // len(chosen) - rows_per_set * position // len(chosen)
            ids, shard_vectors = _sample_shard(run, shard, name, count, layout)
            sampled += [(row_id, name) for row_id in ids]
            vectors.append(shard_vectors)
    # Order the rows by a hash of their ids, so that no set is drawn on top of all others.
    order = np.argsort(hash_ids(row_id for row_id, _ in sampled), kind="stable").tolist()
    all_vectors = np.concatenate(vectors).astype(np.float64)[order]
    return RowSample([sampled[i][0] for i in order], [sampled[i][1] for i in order]), all_vectors


def _shards_by_set(run: RunDirectory) -> dict[str, list[Shard]]:
    """Return the shards that contain rows of each set; only a part of the shards if there are very many."""
    shards = run.shards()
    examined = shards[:: max(1, len(shards) // _MANIFEST_SHARDS)]

    def generators(shard: Shard) -> list[str | None]:
        names: list[str | None] = (
            run.read_shard("manifest", shard, ["generator"])["generator"].unique().to_pylist()
        )
        return names

    by_set: dict[str, list[Shard]] = {}
    # Threads hide the latency of object storage.
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for shard, names in zip(examined, pool.map(generators, examined), strict=True):
            for name in names:
                by_set.setdefault(REAL if name is None else name, []).append(shard)
    return by_set


def _sample_shard(
    run: RunDirectory, shard: Shard, name: str, count: int, layout: VectorLayout
) -> tuple[list[str], NDArray[np.floating]]:
    """Return ids and vectors of up to ``count`` evenly spaced rows of one set in a shard."""
    manifest = run.read_shard("manifest", shard, ["row", "id", "generator"])
    embedded = run.read_shard("embeddings", shard, ["row", "vector"])
    rows = embedded.column("row").to_numpy()
    # The manifest also has the rows that could not be embedded; select those that were.
    manifest = manifest.take(pa.array(rows - shard.start))
    sets = manifest.column("generator").cast(pa.string()).fill_null(REAL).to_numpy(zero_copy_only=False)
    at = np.flatnonzero(sets == name)
    at = at[np.unique(np.linspace(0, len(at) - 1, min(count, len(at))).astype(int))] if len(at) else at
    picked = pa.array(at)
    return manifest.column("id").take(picked).to_pylist(), vector_matrix(embedded.take(picked), layout.classify)
