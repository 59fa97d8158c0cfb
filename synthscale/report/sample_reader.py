"""A sample of a run's vectors, read from few shards, for the map."""

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

_SHARDS_LOOKED_AT = 1000


_SHARDS_A_SET = 16


_READERS = 16


@dataclass(frozen=True)
class RowSample:
    """Rows of a run, (n,) each: the id and the set (a generator, or ``real``)."""

    ids: list[str]
    sets: list[str]


def sample_embeddings(run: RunDirectory, most: int) -> tuple[RowSample, NDArray[np.float64]]:
    """Draw up to ``most`` embedded rows, as many of each set, evenly from few shards; return them and vectors."""
    where = _shards_by_set(run)
    layout = run.layout()
    share = max(2, most // max(1, len(where)))
    found: list[tuple[str, str]] = []
    vectors: list[NDArray[np.floating]] = []
    for name, own in where.items():
        chosen = [own[i] for i in np.unique(np.linspace(0, len(own) - 1, _SHARDS_A_SET).astype(int))]
        for at, shard in enumerate(chosen):
            wanted = share * (at + 1) // len(chosen) - share * at // len(chosen)
            ids, parts = _of_shard(run, shard, name, wanted, layout)
            found += [(text, name) for text in ids]
            vectors.append(parts)
    # In an order of chance, so that no set is painted over all others.
    order = np.argsort(hash_ids(text for text, _ in found), kind="stable").tolist()
    all_vectors = np.concatenate(vectors).astype(np.float64)[order]
    return RowSample([found[i][0] for i in order], [found[i][1] for i in order]), all_vectors


def _shards_by_set(run: RunDirectory) -> dict[str, list[Shard]]:
    """Return shards that hold rows of each set; of very many, some."""
    shards = run.shards()
    looked_at = shards[:: max(1, len(shards) // _SHARDS_LOOKED_AT)]

    def sets(shard: Shard) -> list[str | None]:
        names: list[str | None] = (
            run.read_shard("manifest", shard, ["generator"])["generator"].unique().to_pylist()
        )
        return names

    where: dict[str, list[Shard]] = {}
    # Threads hide the latency of object storage.
    with ThreadPoolExecutor(_READERS) as pool:
        for shard, names in zip(looked_at, pool.map(sets, looked_at), strict=True):
            for name in names:
                where.setdefault(REAL if name is None else name, []).append(shard)
    return where


def _of_shard(
    run: RunDirectory, shard: Shard, name: str, wanted: int, layout: VectorLayout
) -> tuple[list[str], NDArray[np.floating]]:
    manifest = run.read_shard("manifest", shard, ["row", "id", "generator"])
    embedded = run.read_shard("embeddings", shard, ["row", "vector"])
    rows = embedded.column("row").to_numpy()
    own = manifest.take(pa.array(rows - shard.start))
    sets = own.column("generator").cast(pa.string()).fill_null(REAL).to_numpy(zero_copy_only=False)
    at = np.flatnonzero(sets == name)
    at = at[np.unique(np.linspace(0, len(at) - 1, min(wanted, len(at))).astype(int))] if len(at) else at
    picked = pa.array(at)
    return own.column("id").take(picked).to_pylist(), vector_matrix(embedded.take(picked), layout.classify)
