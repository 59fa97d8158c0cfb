"""The map: a sample of a run's vectors in two dimensions, by PCA, and by UMAP where it is installed."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale import tables
from synthscale.keys import id_keys
from synthscale.report.charts import scaled
from synthscale.schemas import REAL, Layout, Shard
from synthscale.storage import RunDirectory

WIDTH, HEIGHT = 720.0, 480.0
_MARGIN = 8.0
_SHARDS_LOOKED_AT = 1000
_SHARDS_A_SET = 16
_READERS = 16
_NEIGHBORS = 15
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Sample:
    """Rows of a run, (n,) each: the id and the set (a generator, or ``real``)."""

    ids: list[str]
    sets: list[str]


@dataclass(frozen=True)
class Projection:
    """Points (n, 2) in a box of WIDTH by HEIGHT; ``shown`` is the share of the variance along either axis."""

    name: str
    points: NDArray[np.float64]
    shown: tuple[float, float] | None


def draw(run: RunDirectory, most: int) -> tuple[Sample, NDArray[np.float64]]:
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
    order = np.argsort(id_keys(text for text, _ in found), kind="stable").tolist()
    all_vectors = np.concatenate(vectors).astype(np.float64)[order]
    return Sample([found[i][0] for i in order], [found[i][1] for i in order]), all_vectors


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
    run: RunDirectory, shard: Shard, name: str, wanted: int, layout: Layout
) -> tuple[list[str], NDArray[np.floating]]:
    manifest = run.read_shard("manifest", shard, ["row", "id", "generator"])
    embedded = run.read_shard("embeddings", shard, ["row", "vector"])
    rows = embedded.column("row").to_numpy()
    own = manifest.take(pa.array(rows - shard.start))
    sets = own.column("generator").cast(pa.string()).fill_null(REAL).to_numpy(zero_copy_only=False)
    at = np.flatnonzero(sets == name)
    at = at[np.unique(np.linspace(0, len(at) - 1, min(wanted, len(at))).astype(int))] if len(at) else at
    picked = pa.array(at)
    return own.column("id").take(picked).to_pylist(), tables.vectors(embedded.take(picked), layout.classify)


def project(vectors: NDArray[np.float64]) -> list[Projection]:
    """Return the PCA of unit vectors (n, d), and their UMAP where umap-learn is installed."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centred = unit - unit.mean(0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    # What is left of equal rows is rounding, and would be drawn as large as the map.
    values[values <= _ROUNDING * np.sqrt(len(vectors))] = 0
    places = np.zeros((len(vectors), 2))
    axes = min(2, len(values))
    # The sign of an axis is arbitrary: its largest part is positive.
    signs = np.sign(right[np.arange(axes), np.abs(right[:axes]).argmax(1)])
    places[:, :axes] = left[:, :axes] * values[:axes] * np.where(signs == 0, 1, signs)
    total = max(float((values**2).sum()), 1e-300)
    shares = [float(value**2) / total for value in values[:2]] + [0.0, 0.0]
    found = [Projection("PCA", scaled(places, WIDTH, HEIGHT, _MARGIN), (shares[0], shares[1]))]
    if importlib.util.find_spec("umap") is not None and len(vectors) > _NEIGHBORS:
        import umap

        reduced = umap.UMAP(n_neighbors=_NEIGHBORS, metric="cosine", random_state=0, n_jobs=1).fit_transform(unit)
        found.append(Projection("UMAP", scaled(np.asarray(reduced, np.float64), WIDTH, HEIGHT, _MARGIN), None))
    return found
