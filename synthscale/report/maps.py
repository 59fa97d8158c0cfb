"""The map: a sample of a run's vectors in two dimensions, by PCA, and by UMAP where it is installed."""

import importlib.util
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthscale.report.charts import scaled

WIDTH, HEIGHT = 720.0, 480.0
_MARGIN = 8.0
_NEIGHBORS = 15
_ROUNDING = 1e-9


@dataclass(frozen=True)
class MapProjection:
    """Points (n, 2) in a box of WIDTH by HEIGHT; ``shown`` is the share of the variance along either axis."""

    name: str
    points: NDArray[np.float64]
    shown: tuple[float, float] | None


def project(vectors: NDArray[np.float64]) -> list[MapProjection]:
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
    found = [MapProjection("PCA", scaled(places, WIDTH, HEIGHT, _MARGIN), (shares[0], shares[1]))]
    if importlib.util.find_spec("umap") is not None and len(vectors) > _NEIGHBORS:
        import umap

        reduced = umap.UMAP(n_neighbors=_NEIGHBORS, metric="cosine", random_state=0, n_jobs=1).fit_transform(unit)
        found.append(MapProjection("UMAP", scaled(np.asarray(reduced, np.float64), WIDTH, HEIGHT, _MARGIN), None))
    return found
